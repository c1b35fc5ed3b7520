"""The job `steer`: learn a steering mask for a scenario, and show on test prompts what it gains and costs."""

from pointsman.jobs.job import Job
from pointsman.jobs.steer.plan import Steer, SteerInputs

JOB = Job(
    name="steer",
    panel="Steer",
    help="""Learn a steering mask on the routers for a scenario, and show what it gains and what it costs.

    Plays the scenario, learns masks (MASCing's on a surrogate, and on policy; and through the model), chooses among
    them and the baselines on validation prompts, and reports on test prompts. The mask is an artefact of the run.

    The last line printed is the path of the report.

    [bold]Examples[/bold]

    pointsman steer testbed --scenario multi_turn_defence

    pointsman scenario init multi_turn_defence --template real --out defence.yaml

    pointsman steer allenai/OLMoE-1B-7B-0125-Instruct --scenario defence.yaml --out runs/defence
    """,
    inputs=SteerInputs,
    plan=Steer,
    module="pointsman.jobs.steer.job",
)
