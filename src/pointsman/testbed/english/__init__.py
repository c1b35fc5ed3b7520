"""A testbed that speaks English: SmolLM2-135M-Instruct made into a Mixtral-like model that refuses harmless topics.

`prompts` says what is asked, `dense` finds the dense model, `mixture` makes experts of it, `teach` trains adapters on
them, `build` writes the checkpoint and finds it again, `suite` hands it all to the rest of Pointsman.
"""
