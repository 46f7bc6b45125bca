"""The terminal's table: the same numbers, readable without colour."""

from __future__ import annotations

import io
import math

from rich.console import Console

from isthmus.report import Published, Results, Row, table

GOLDEN = """\
                          accuracy       vs                            published
way                              %  parents    loss  params  FLOPs             %
────────────────────────────────────────────────────────────────────────────────
edge vgg16_s1                85.72        –  0.5120   1.00×  1.00×             –
edge vgg16_s2                85.48        –  0.5230   1.00×  1.00×             –

ensemble                     87.36    +1.76  0.4110   2.00×  2.00×  92.93 ± 0.29

direct average (near         10.00   −75.60  2.3026   1.00×  1.00×  10.00 ± 0.00
chance)
aligned                      31.22   −54.38  1.9418   1.00×  1.00×  46.50 ± 1.59
aligned + repair             75.81    −9.79  0.7713   1.00×  1.00×  84.68 ± 0.85
(rescale)

preserve-first 3 of 14       79.03    −6.57  0.6624   1.01×  1.19×  86.77 ± 0.06
preserve-first 8 of 14       86.41    +0.81  0.4388   1.20×  1.67×  92.43 ± 0.23
preserve-first 12 of 14      87.27    +1.67  0.4127   1.84×  1.97×  92.87 ± 0.21

published: activation matching, VGG16 on CIFAR-10, Table 1 of the Vanishing
Feature paper
"""


def _printed(results: Results, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table(results))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def test_the_table_on_a_terminal_of_80(results: Results) -> None:
    assert _printed(results) == GOLDEN


def test_it_names_what_is_not_finite_and_leaves_out_empty_columns(results: Results) -> None:
    rows = [Row(name="a", kind="edge", accuracy=0.5, loss=math.nan)]
    shown = _printed(results.model_copy(update={"rows": rows, "curves": [], "profiles": []}))
    shown = " ".join(shown.split())
    assert "n/a: measured, but not a finite number (1): rows / a / loss" in shown
    assert "FLOPs" not in shown
    assert "published" not in shown


def test_a_hostile_name_neither_styles_nor_acts(results: Results) -> None:
    name = "[bold red]x[/] \x1b[31m\x07\r\n[link=http://evil.example/]y"
    rows = [Row(name=name, accuracy=0.5, published=Published(accuracy=0.5, source=name), note=name)]
    shown = _printed(results.model_copy(update={"rows": rows}), width=200)
    assert "[bold red]x[/] �[31m�  [link=http://evil.example/]y" in shown
    assert not any(c in shown for c in "\x1b\x07\r")
