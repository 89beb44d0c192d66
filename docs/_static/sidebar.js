// Scrolls the sidebar to the page that is open: those of the reference stand far down in it.

document.addEventListener("DOMContentLoaded", () => {
  const [sidebar, page] = [".sidebar-scroll", ".sidebar-tree .current-page"].map((s) => document.querySelector(s));
  if (sidebar && page) {
    const below = page.getBoundingClientRect().top - sidebar.getBoundingClientRect().top;
    sidebar.scrollTop = Math.max(0, below - sidebar.clientHeight / 4);
  }
});
