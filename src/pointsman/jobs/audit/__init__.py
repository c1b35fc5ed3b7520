"""The job `audit`: how fragile is a model's safety to its routing?"""

from pointsman.jobs.audit.plan import Audit, AuditInputs
from pointsman.jobs.job import Job

JOB = Job(
    name="audit",
    panel="Audit",
    help="""Measure how fragile a model's safety is to its routing, and write a report.

    Ranks the routers (RoSais), masks the most important ones and random others, and searches unsafe routes (F-SOUR,
    Guided).

    The last line printed is the path of the report.

    [bold]Examples[/bold]

    pointsman audit testbed

    pointsman audit allenai/OLMoE-1B-7B-0924-Instruct --behaviors harmful.csv --benign benign.csv

    pointsman audit ./my-model --behaviors harmful.jsonl --limit 0 --out runs/mine --json > results.json
    """,
    inputs=AuditInputs,
    plan=Audit,
    module="pointsman.jobs.audit.job",
)
