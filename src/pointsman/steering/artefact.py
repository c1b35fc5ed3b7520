"""`Steering`: what was learnt to steer a model by, as it is deployed. METHODS sections 5 and 10, arXiv 2604.27818.

The matrix S has a number for every expert of every MoE layer, in units of sigma, and is zero outside the *circuit*.
At alpha, ``alpha * sigma_l * S[l]`` is added to the raw logits of router l: a constant vector, since sigma is kept
with the matrix and not taken from whatever is in the batch. A conditional steering adds ``alpha * B_l A_l x`` as well,
x what the router reads at the token. On disk it is a folder that the Hugging Face hub understands:

==================== ====================================================================================
steering.json        what it is and is for, and the circuit, to be read by people too
steering.safetensors the matrix: ``layers.<l>``, shape [E_l], float32; and the conditional part: see `maps`
README.md            the model card
==================== ====================================================================================

The three methods of `huggingface_hub.ModelHubMixin` have its names and arguments. Its ``__new__`` writes to the
instance, which an immutable class refuses, so they are written here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, get_args

import numpy as np

from pointsman.errors import InterventionError, WrongModel
from pointsman.routing.intervention import Intervention, Phase
from pointsman.routing.low_rank import LowRank
from pointsman.routing.routers import Router
from pointsman.steering.card import HUB_ID, Card, measured
from pointsman.steering.maps import checked, described, read_maps, row_norms, stacked, tensors_of
from pointsman.steering.values import frozen, number, one_line, thawed, vector

SCHEMA, CONDITIONAL_SCHEMA = "pointsman.steering/1", "pointsman.steering/2"
MAX_ALPHA = 8.0
DATA, TENSORS, CARD = "steering.json", "steering.safetensors", "README.md"

_KEEP = "Keep the files of a steering together as Steering.save_pretrained wrote them, or save it again"


@dataclass(frozen=True, eq=False)
class Steering:
    """What is deployed: a steering matrix, its strength, and the model that it is for. Immutable and hashable.

    Accepted wherever an `Intervention` is: ``engine.generate(..., routing=steering)``, ``control(model, steering)``.
    ``a + b`` of two for one model does to its logits what the two do.

    Attributes:
        matrix: S, one array a MoE layer, in units of sigma; read-only. Shapes: [E_l], float32.
        sigma: Standard deviation of each layer's raw logits over real tokens, in logit units. Shape: [L].
        alpha: Strength, above 0 and at most 8.
        phase: ``prefill``, ``decode`` or ``both``.
        per_token: Take sigma from each token's own logits instead (over its E_l experts).
        fingerprint: Of the model that it is for; no other is steered.
        base_model: What that model is called: a hub id if it has one.
        revision: Hub revision of the base model.
        weights: `weights_hash` of that model: its routers alone make the fingerprint, and the rest may be another's.
        maps: The conditional part, by MoE layer: A_l and B_l in logit units at alpha 1. Empty for a constant steering.
        about: JSON data on where it comes from (scenario, method, lambda, refinement, seeds). `measured`, if it is
            there, becomes the table of the model card: a list of ``{"what": text, "before": Rate, "after": Rate}``,
            each rate ``{"rate", "low", "high", "n"}`` as a `Rate` has them.

    Raises:
        InterventionError: A value is not finite, out of range or of another shape.
    """

    matrix: tuple[np.ndarray, ...]
    sigma: tuple[float, ...]
    alpha: float
    phase: Phase
    fingerprint: str
    base_model: str
    revision: str | None = None
    per_token: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    maps: Mapping[int, LowRank] = field(default_factory=dict)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "matrix", tuple(vector(values, layer) for layer, values in enumerate(self.matrix)))
        put(self, "sigma", tuple(number(value, "sigma") for value in self.sigma))
        put(self, "alpha", number(self.alpha, "alpha"))
        if not 0 < self.alpha <= MAX_ALPHA:
            raise InterventionError(
                f"An alpha of {self.alpha:g}", f"Use one above 0 and at most {MAX_ALPHA:g}; no steering is alpha 0"
            )
        if not self.matrix or len(self.matrix) != len(self.sigma):
            raise InterventionError(
                f"A steering matrix of {len(self.matrix)} layers with {len(self.sigma)} sigmas",
                "Give one of each for every MoE layer",
            )
        if min(self.sigma) < 0:
            raise InterventionError(f"A sigma of {min(self.sigma):g}", "Give standard deviations, in logit units")
        if self.phase not in get_args(Phase):
            raise InterventionError(f"Unknown phase {self.phase!r}", f"Use one of {', '.join(get_args(Phase))}")
        if not isinstance(self.per_token, bool):
            raise InterventionError(f"per_token is {self.per_token!r}", "Use True or False")
        for name in ("fingerprint", "base_model"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise InterventionError(f"A steering with {value!r} as its {name}", "Name the model that it is for")
        if self.revision is not None and not isinstance(self.revision, str):
            raise InterventionError(f"A revision of {self.revision!r}", "Give a branch, tag or commit, or None")
        if self.weights is not None and not isinstance(self.weights, str):
            raise InterventionError(f"A hash of weights of {self.weights!r}", "Give what weights_hash gives, or None")
        if not isinstance(self.about, Mapping):
            raise InterventionError("What a steering says about itself is no mapping", "Give a dictionary")
        put(self, "maps", checked(self.maps, [len(values) for values in self.matrix]))
        put(self, "about", frozen(self.about))
        measured(self.about)  # refuses what the card could not show
        _ = self.intervention  # so that a matrix beyond float32 is refused here

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Steering):
            return NotImplemented
        same = all(map(np.array_equal, self.matrix, other.matrix)) and len(self.matrix) == len(other.matrix)
        return same and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.intervention, self.sigma, self.alpha, self.base_model, self.revision))

    def __repr__(self) -> str:
        conditional = f"conditional in {len(self.maps)} of {len(self.matrix)} layers, " if self.maps else ""
        return (
            f"Steering({len(self.circuit)} of {sum(map(len, self.matrix))} entries, {conditional}alpha={self.alpha:g}, "
            f"phase={self.phase!r}, base_model={self.base_model!r})"
        )

    def __add__(self, other: Steering) -> Steering:
        """What does to the logits what the two do, at alpha 1. What was measured holds for none of it, and is left out.

        Raises:
            WrongModel: They are for different models.
            InterventionError: They steer other tokens or in other units, or the sum is no steering of these routers.
        """
        if not isinstance(other, Steering):
            return NotImplemented
        each = (self, other)
        hashes = {one.weights for one in each if one.weights}
        if self.fingerprint != other.fingerprint or len(hashes) > 1:
            raise WrongModel(
                f"These steerings are for different models ({' and '.join(one.base_model for one in each)})",
                "Add only steerings made for one model",
            )
        for name in ("phase", "per_token"):
            mine, its = getattr(self, name), getattr(other, name)
            if mine != its:
                raise InterventionError(
                    f"These steerings have different settings ({name} {mine} and {its})",
                    "Add only steerings of the same tokens and units, or use both: a.intervention + b.intervention",
                )
        if [len(values) for values in self.matrix] != [len(values) for values in other.matrix]:
            raise InterventionError("These steerings have other layers or experts", "Add steerings of one model")
        sigma, matrix = [], []
        for n in range(len(self.matrix)):
            used = [one.sigma[n] for one in each if one.matrix[n].any() and one.sigma[n]]
            unit = used[0] if used else self.sigma[n]
            scales = [1.0 if self.per_token else one.sigma[n] / unit if unit else 0.0 for one in each]
            rows = [one.alpha * k * one.matrix[n].astype(np.float64) for one, k in zip(each, scales, strict=True)]
            sigma.append(unit)
            matrix.append(rows[0] + rows[1])
        split = self.about.get("split_seed")  # of the requests that must not be tested on, if both left out the same
        return Steering(
            matrix=tuple(matrix), sigma=tuple(sigma), alpha=1.0, phase=self.phase, fingerprint=self.fingerprint,
            base_model=self.base_model, revision=self.revision if self.revision == other.revision else None,
            per_token=self.per_token, weights=self.weights or other.weights,
            about={
                **({"split_seed": split} if split is not None and split == other.about.get("split_seed") else {}),
                "sum": [{**_without_measured(one.about), "alpha": one.alpha} for one in each],
            },
            maps=stacked(*({layer: m.scaled(one.alpha) for layer, m in one.maps.items()} for one in each)),
        )  # fmt: skip

    @cached_property
    def intervention(self) -> Intervention:
        """What it does, as rules: one bias, one conditional rule. Layers without an entry of either are left out."""
        scale = (1.0,) * len(self.sigma) if self.per_token else self.sigma
        vectors = {
            layer: values.astype(np.float64) * sigma  # shape: [E_l]
            for layer, (values, sigma) in enumerate(zip(self.matrix, scale, strict=True))
            if values.any()
        }
        if not vectors and not self.maps:  # a rule all the same: what does nothing is refused on another model
            vectors = {0: np.zeros(len(self.matrix[0]))}
        rules = Intervention()
        if vectors:
            rules += Intervention.bias(vectors, alpha=self.alpha, per_token=self.per_token, phase=self.phase)
        if self.maps:
            rules += Intervention.conditional(self.maps, alpha=self.alpha, phase=self.phase)
        return rules.for_model(self.fingerprint)

    @cached_property
    def circuit(self) -> tuple[tuple[int, int, float], ...]:
        """The entries that are not zero: (layer, expert, value in sigma), the largest first."""
        entries = [
            (layer, int(expert), float(values[expert]))
            for layer, values in enumerate(self.matrix)
            for expert in np.flatnonzero(values)
        ]
        return tuple(sorted(entries, key=lambda entry: (-abs(entry[2]), entry[:2])))

    @cached_property
    def conditional_norms(self) -> Mapping[int, np.ndarray]:
        """Of the conditional part, by MoE layer, how far an input of length 1 can move each expert's logit at alpha 1.

        They are norms of the rows of B A, as those of W are for the router itself. Shapes: [E_l], float64.
        """
        return {layer: row_norms(one) for layer, one in self.maps.items()}

    def at(self, alpha: float) -> Steering:
        """The same at another strength. What was measured was measured at the old one, and is left out."""
        about = self.about if alpha == self.alpha else _without_measured(self.about)
        return replace(self, alpha=alpha, about=about)

    def check(self, routers: Sequence[Router], fingerprint: str | None = None) -> None:
        """Refuse a model that it is not for.

        Raises:
            WrongModel: Another fingerprint.
            InterventionError: Its layers or experts are not those of these routers.
        """
        if fingerprint and fingerprint != self.fingerprint:
            raise WrongModel(
                f"This steering is for {self.base_model} ({self.fingerprint}), and the model is {fingerprint}",
                "Load the model it was made for, or learn a steering on this one",
            )
        shapes, wanted = [len(values) for values in self.matrix], [router.experts for router in routers]
        if shapes != wanted:
            raise InterventionError(
                f"A steering for {len(shapes)} layers of {_few(shapes)} experts, and the model has {len(wanted)} of "
                f"{_few(wanted)}",
                "Load the model it was made for, or learn a steering on this one",
            )
        self.intervention.check(routers, fingerprint)

    def on_other_weights(self, weights: str) -> str:
        """A sentence if the model has the routers that this is for, and is another one all the same; else nothing.

        Args:
            weights: `weights_hash` of the model.
        """
        if self.weights is None or self.weights == weights:
            return ""
        return (
            f"the routers are those of {self.base_model}, for which this steering was made, and the rest of the model "
            f"is not (weights {weights}, not {self.weights}): what was measured then does not hold here"
        )

    # -- saving ------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """As ``steering.json`` holds it: everything, the matrix as its circuit, the conditional part by its digests."""
        return {
            "schema": CONDITIONAL_SCHEMA if self.maps else SCHEMA,
            "base_model": self.base_model,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            **({} if self.weights is None else {"weights": self.weights}),  # files of older versions have none
            "alpha": self.alpha,
            "phase": self.phase,
            "per_token": self.per_token,
            "experts": [len(values) for values in self.matrix],
            "sigma": list(self.sigma),
            "circuit": [list(entry) for entry in self.circuit],
            **({"conditional": described(self.maps)} if self.maps else {}),
            "about": thawed(self.about),
        }

    def card(self) -> str:
        """The model card: front matter of the hub, what it is, how to use it, what was measured."""
        card = Card(
            base_model=self.base_model, revision=self.revision, fingerprint=self.fingerprint, alpha=self.alpha,
            phase=self.phase, per_token=self.per_token, experts=tuple(map(len, self.matrix)), circuit=self.circuit,
            about=self.about, maps=self.maps,
        )  # fmt: skip
        return card.text(DATA)

    def save_pretrained(self, save_directory: str | Path) -> Path:
        """Write the three files into a folder, over files of the same names.

        Returns:
            The folder.

        Raises:
            InterventionError: It cannot be written.
        """
        from safetensors.numpy import save_file

        folder = Path(save_directory)
        tensors = {f"layers.{layer}": np.ascontiguousarray(values) for layer, values in enumerate(self.matrix)}
        tensors |= tensors_of(self.maps)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / TENSORS)
            (folder / CARD).write_text(self.card(), encoding="utf-8")
            (folder / DATA).write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise InterventionError(
                f"Cannot write the steering into {folder} ({error.strerror or error})",
                "Give a folder that can be written",
            ) from error
        return folder

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> Self:
        """Read what `save_pretrained` wrote, from a folder or from the hub. The files are untrusted: all is checked.

        Args:
            pretrained_model_name_or_path: Folder, or hub id.
            force_download, token, cache_dir, local_files_only, revision: As everywhere on the hub.

        Raises:
            InterventionError: There is no such steering, or it is damaged.
        """
        name = str(pretrained_model_name_or_path)
        folder = Path(name).expanduser()
        if not folder.is_dir():
            if folder.exists() or isinstance(pretrained_model_name_or_path, Path) or not HUB_ID.fullmatch(name):
                raise InterventionError(
                    f"There is no folder {name}", "Give the folder that Steering.save_pretrained wrote, or a hub id"
                )
            from huggingface_hub import snapshot_download

            try:
                folder = Path(
                    snapshot_download(
                        name, allow_patterns=[DATA, TENSORS], force_download=force_download, token=token,
                        cache_dir=cache_dir, local_files_only=local_files_only, revision=revision,
                    )
                )  # fmt: skip
            except Exception as error:  # of the hub's, of the network's, of the disk's
                raise InterventionError(
                    f"Cannot find the steering {name!r} on the hub or in the local cache ({type(error).__name__})",
                    "Check the name and the network, or give a local folder; for a private one, `hf auth login`",
                ) from error
        return cls._read(folder, name)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Add a steering",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Upload the three files to a repository of the hub, made if there is none.

        Returns:
            The address of the commit.

        Raises:
            InterventionError: The hub refused.
        """
        from huggingface_hub import HfApi

        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            try:
                api = HfApi(token=token)
                repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
                done = api.upload_folder(
                    repo_id=repo_id, folder_path=folder, commit_message=commit_message, revision=branch,
                    create_pr=create_pr,
                )  # fmt: skip
            except Exception as error:  # of the hub's or of the network's
                why = one_line(f"{type(error).__name__}: {error}")[:200]
                raise InterventionError(
                    f"The steering was not uploaded to {repo_id!r} ({why})",
                    "Check the name and the network, and log in with `hf auth login`",
                ) from error
        return str(done)

    @classmethod
    def _read(cls, folder: Path, name: str) -> Self:
        """From the files of a folder; `name` is what the user calls it."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            data = json.loads((folder / DATA).read_text(encoding="utf-8"))
        except OSError as error:
            raise InterventionError(
                f"{name} holds no steering: cannot read {DATA} ({error.strerror or error})",
                "Give what Steering.save_pretrained wrote",
            ) from error
        except (ValueError, RecursionError) as error:
            raise InterventionError(f"{DATA} of {name} is not JSON ({one_line(str(error))})", _KEEP) from error
        found = data.get("schema") if isinstance(data, dict) else None
        if found not in (SCHEMA, CONDITIONAL_SCHEMA):
            raise InterventionError(
                f"{DATA} of {name} is no steering (schema {found!r})",
                f"Expected the schema {SCHEMA!r} or {CONDITIONAL_SCHEMA!r}, as written by Steering.save_pretrained",
            )
        if "folded" in data:
            raise InterventionError(
                f"The steering of {name} is folded into the checkpoint there", "Load that model, and steer nothing"
            )
        try:
            shapes = [int(n) for n in data["experts"]]
            tensors = load_file(folder / TENSORS)
            maps: dict[int, LowRank] = {}
            if found == CONDITIONAL_SCHEMA:
                of_maps = {key: tensors.pop(key) for key in list(tensors) if key.count(".") == 2}
                maps = read_maps(data["conditional"], of_maps)
            if sorted(tensors) != sorted(f"layers.{n}" for n in range(len(shapes))):
                raise ValueError(f"{len(tensors)} tensors for {len(shapes)} layers")
            matrix = tuple(tensors[f"layers.{n}"] for n in range(len(shapes)))
            if [values.shape for values in matrix] != [(n,) for n in shapes]:
                raise ValueError("the layers have other shapes")
            steering = cls(
                matrix, tuple(data["sigma"]), data["alpha"], data["phase"], data["fingerprint"], data["base_model"],
                data["revision"], data["per_token"], data["about"], data.get("weights"), maps,
            )  # fmt: skip
            if [tuple(entry) for entry in data["circuit"]] != list(steering.circuit):
                raise ValueError("the circuit is another one in the two files")
        except InterventionError as error:
            raise InterventionError(f"The steering of {name}: {error.problem}", error.remedy) from error
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InterventionError(
                f"The steering of {name} is damaged ({one_line(f'{type(error).__name__}: {error}')[:200]})", _KEEP
            ) from error
        return steering


def _without_measured(about: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in about.items() if key != "measured"}


def _few(numbers: Sequence[int]) -> str:
    return " or ".join(str(n) for n in sorted(set(numbers))[:4])
