"""Formulas as MathML, made while the pages are built: they need no script and no network to be read."""

import re

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

TEXT = re.compile(r"(?<=\\text\{)[^{}]*(?=\})")


def mathml(node, display="inline"):
    """Write a formula, without two flaws of the converter: a backslash in text, a tilde for a relation."""
    formula = TEXT.sub(lambda text: text[0].replace("\\_", "_"), node.astext())
    return convert(formula, display=display).replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")


def inline(translator, node):
    translator.body.append(mathml(node))
    raise SkipNode  # the formula's text has been written


def block(translator, node):
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    translator.body.append(mathml(node, display="block"))
    translator.body.append("</div>\n")
    raise SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
