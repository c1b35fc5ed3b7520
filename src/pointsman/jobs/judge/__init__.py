"""The job `judge`: what another judge makes of the answers of a run."""

from pointsman.jobs.job import Job
from pointsman.jobs.judge.plan import JudgeAgain, JudgeInputs

JOB = Job(
    name="judge",
    panel="Judges",
    help="""Judge the answers of a finished run again, with another judge: nothing is generated, no model is loaded.

    The last line printed is the path of the report.

    [bold]Examples[/bold]

    pointsman judge runs/audit-testbed --judge refusal

    pointsman judge runs/audit-testbed --judge human:file=sheet.csv
    """,
    inputs=JudgeInputs,
    plan=JudgeAgain,
    module="pointsman.jobs.judge.job",
    needs_model=False,
)
