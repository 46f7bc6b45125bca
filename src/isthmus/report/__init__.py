"""Results -> a page a person reads, a table a terminal prints, a file a program reads.

results = Results(title="Two VGG16 on CIFAR-10", verdict="...", rows=[Row(name="edge A", kind="edge", ...)])
results.to_json("results.json")
render(results, "report.html")
rich.print(table(results))
"""

from isthmus.report.page import render
from isthmus.report.profiles import Profile, Series
from isthmus.report.results import (
    Alignment,
    Curve,
    Panel,
    Pictures,
    Provenance,
    Published,
    Results,
    Row,
    Setting,
    SpaceCost,
    Verification,
)
from isthmus.report.terminal import table

__all__ = [
    "Alignment",
    "Curve",
    "Panel",
    "Pictures",
    "Profile",
    "Provenance",
    "Published",
    "Results",
    "Row",
    "Series",
    "Setting",
    "SpaceCost",
    "Verification",
    "render",
    "table",
]
