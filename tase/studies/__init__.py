"""Tables and ablations as data: a study is declared, what is missing of it is run, and its tables are written.

    study = STUDIES["ablation"]                                     # question, rows, columns, reference
    found = run_study(study, ["digits-lt"], seeds=range(3), out="studies/ablation", jobs=2)
    print(found.markdown)

A folder of a study holds results.csv (one number a line), study.json (what it is), table.md and table.tex, and runs/
with a run per configuration. The same call goes on after an interruption, and does nothing where all is done.
"""

from ._declared import PUBLISHED, STUDIES, Published
from ._grid import BALANCED, CONTROLS, SIMCLR, Cell, Study, Times, cross, methods, over
from ._jobs import ASSUMED, Job, cost, work
from ._study import Outcome, Plan, StudyError, plan, read_study, run_study
from ._table import Contrast, blocks, contrasts, name_of, shown, to_latex, to_markdown

__all__ = [
    "ASSUMED",
    "BALANCED",
    "CONTROLS",
    "Cell",
    "Contrast",
    "Job",
    "Outcome",
    "PUBLISHED",
    "Plan",
    "Published",
    "SIMCLR",
    "STUDIES",
    "Study",
    "StudyError",
    "Times",
    "blocks",
    "contrasts",
    "cost",
    "cross",
    "methods",
    "name_of",
    "over",
    "plan",
    "read_study",
    "run_study",
    "shown",
    "to_latex",
    "to_markdown",
    "work",
]
