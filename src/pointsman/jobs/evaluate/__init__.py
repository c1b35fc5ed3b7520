"""The job `evaluate`: what a steering gains and costs on the test prompts of a scenario."""

from pointsman.jobs.evaluate.plan import Evaluate, EvaluateInputs
from pointsman.jobs.job import Job

JOB = Job(
    name="evaluate",
    panel="Steer",
    help="""Evaluate a steering on the test prompts of a scenario, beside the same model without it.

    The last line printed is the path of the report.

    [bold]Examples[/bold]

    pointsman evaluate testbed --steering runs/defence

    pointsman evaluate ./my-model --steering me/my-steering --scenario defence.yaml --limit 0
    """,
    inputs=EvaluateInputs,
    plan=Evaluate,
    module="pointsman.jobs.evaluate.job",
)
