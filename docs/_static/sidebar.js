// Scrolls the sidebar to the page that is open: those of the reference stand far down in it.

document.addEventListener("DOMContentLoaded", () => {
  const sidebar = document.querySelector(".sidebar-scroll");
  const page = document.querySelector(".sidebar-tree .current-page");
  if (sidebar && page) {
    const below = page.getBoundingClientRect().top - sidebar.getBoundingClientRect().top;
    sidebar.scrollTo({ top: below - sidebar.clientHeight / 4, behavior: "instant" });
  }
});
