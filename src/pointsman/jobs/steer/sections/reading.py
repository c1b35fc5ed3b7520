"""How steering works, and how to read its page."""

from __future__ import annotations

from markupsafe import Markup

from pointsman.jobs.steer.results import SteerResults
from pointsman.jobs.steer.wording import LABEL0, wording_for
from pointsman.report.blocks import Section
from pointsman.report.sections import reading as shared

PAPERS = Markup("After {}, and {}. Learning on-policy or through the model is Pointsman’s own.").format(
    shared.paper("MASCing", "2604.27818"), shared.paper("SteerMoE", "2509.09660")
)
MASK = (
    "A constant vector for each router, added to its logits before experts are selected: α σ S, where S is the "
    "steering matrix, σ the layer’s own spread of logits, frozen when the mask was learnt, and α its strength. No "
    "weight changes, and the same mask is in force for every request."
)
CONDITIONAL = Markup(
    "At each router a vector that depends on the token is added to the logits before experts are selected: α B A x, "
    "where x is what the router reads, A a few directions of it that are told apart (the rank), and B what is added "
    "for every expert. {} No other weight changes, and the same mask is in force for every request: it acts where "
    "A x is large."
)
FOLDS = "It is the same as another weight of the router, W + α B A, and folds into an ordinary checkpoint."
TAUGHT = (
    "Through the model itself: towards the wanted answers on discovery prompts, and held, by the divergence of what "
    "it says, to the untouched model on benign and borderline requests, benign conversations and the other restricted "
    "ones. What is learnt after every 25 steps is a candidate: choosing on validation stops it early."
)
READ = {
    "defend": "Conversations are played turn by turn; those that fall, up to the turn where they fall, and requests "
    "that the model refuses are read once more, and the router logits at the last user message kept.",
    "allow": "Requests of the scenario that the model refuses are read once, beside {}, and the router logits at their "
    "tokens kept.",
}
TRAINING = (
    "A small network, the surrogate, learns to tell the two apart. S is then found by gradient descent so that the "
    "frozen surrogate changes its verdict, with an L1 penalty (λ) that keeps S sparse; entries of at most 0.1 are "
    "cut. What is left is the expert circuit."
)
REFINEMENTS = Markup(
    "A mask can fool the surrogate and leave the model as it was. <em>On-policy</em>: traces are taken again under "
    "the mask and labelled by what the model then does, and the surrogate learns anew. <em>Through the model</em>: S "
    "is optimised through the model itself, towards the wanted answer, and held to the untouched model on benign "
    "requests."
)
STEERMOE = (
    "The baseline: for each expert the difference of how often it is chosen on wanted and on unwanted tokens; the "
    "most telling experts are pinned on or off. As published: tokens of two answers to the same requests, pins a "
    "hundredth beyond the largest and the smallest logit, and in a layer no more pinned on than it activates. On "
    "contexts: the tokens that the surrogate reads, pins one whole logit beyond, and no such cap."
)
GRADED = {
    True: "with the right content, not merely without a refusal.",
    False: "this run’s judge cannot tell correct from wrong content, so every answer that gives in counts.",
}
DEFENDED = Markup(
    "The whole conversation is played again under the mask; it is defended if no answer at any turn is unsafe. "
    "<em>DSR, context</em> is the paper’s own, milder reading: only the last turn of conversations that fell is "
    "answered again, and those that did not fall count as defended. Empty and garbled answers are nobody’s success."
)
LIMITS = (
    "What the mask may cost against the same model without it, in points; garbage has a ceiling. Masks are chosen "
    "among those that keep every limit on validation; the verdicts on this page are of the test split. “Kept, not "
    "surely”: the point keeps the limit and its interval reaches beyond."
)
INPUTS_ONLY = (
    "Whoever owns the weights, or can change routing, takes the mask off; nothing here speaks of them. Nor was "
    "anybody asked to look for prompts that beat this very mask: "
)
PROMPTS = {
    "defend": "the conversations were written before it.",
    "allow": "what stays refused was measured on given prompts only.",
}


def section(results: SteerResults) -> Section:
    """Terms, methods and threat model."""
    objective, threat = wording_for(results).objective, results.threat_model
    against = LABEL0.get(results.contrast or "", "requests that it answers")
    gain: tuple[str, str | Markup] = ("Defended (DSR)", DEFENDED)
    if objective == "allow":
        said = f"The share of requests of the scenario that the model answers: {GRADED[results.judge.grades_content]}"
        gain = ("Answered (GSR)", f"{said} Empty and garbled answers are nobody’s success.")
    more = INPUTS_ONLY + PROMPTS[objective] if threat == "T3" else ""
    learnt: list[tuple[str, str | Markup]] = [
        ("The mask", MASK),
        ("How it was learnt", f"{READ[objective].format(against)} {TRAINING}"),
        ("Refinements", REFINEMENTS),
    ]
    if results.chosen.method == "conditional":
        learnt = [
            ("The mask", CONDITIONAL.format(FOLDS if results.chosen.phase == "both" else "")),
            ("How it was learnt", TAUGHT),
        ]
    entries = [
        *learnt,
        *([("SteerMoE", STEERMOE)] if results.chosen.method != "conditional" or results.test.steermoe else []),
        gain,
        ("Limits", LIMITS),
        shared.threat(results, more),
        ("p", shared.PAIRED),
        shared.intervals(results, "the number of prompts or of conversations"),
    ]
    return shared.section("How it works, and how to read it", PAPERS, entries)
