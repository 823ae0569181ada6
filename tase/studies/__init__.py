"""Tables and ablations as data: a study is declared, what is missing of it is run, and its tables are written.

    study = STUDIES["ablation"]                                     # question, rows, columns, reference
    found = run_study(study, ["digits-lt"], seeds=range(3), out="studies/ablation", jobs=2)
    print(found.markdown)

A folder of a study holds results.csv (one number a line), study.json (what it is), table.md and table.tex, and runs/
with a run per configuration. The same call resumes after an interruption, and does nothing where all is done.
"""

from ..tables import Contrast, contrasts, name_of, shown
from .declared import STUDIES, Cell, Multiple, Study, cross, each_method, over
from .engines import ENGINES, engine
from .jobs import Job, Workers, cost
from .study import Outcome, Plan, StudyError, plan, published, read_study, run_study, write_tables
