"""Direct preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from graftline.stages.errors import InvalidField
from graftline.stages.expected import pair_tokens
from graftline.stages.specification import Paper
from graftline.stages.stage import Stage
from graftline.stages.train.base.float import Float
from graftline.stages.train.pairs import answer_logprobs, pack_pairs, pair_length
from graftline.stages.train.plugs import Adapter, Batch, LossContext, LossOut, Objective, Row, Start
from graftline.stages.train.reference_logprobs import ReferenceLogprobs
from graftline.stages.train.tokenised_pairs import TokenisedPairs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graftline.stages.lm.reader import Reader


class Dpo(Objective):
    """DPO on rows with `prompt`, `chosen` and `rejected`: −log σ(β(s_w − s_l)), where s(y) = Σ_t [log π − log π_ref]
    over an answer's tokens and its end of turn; the mean over pairs. Logs the share of pairs in the right order
    (`accuracy`), the rewards' `margin`, and both answers' log-probability (the chosen one's usually *falls*). Wants a
    learning rate of 5e-6 to 5e-5 with LoRA, ten times less with full tuning, and 1 to 3 epochs.

    Args:
        beta: β, how dear it is to leave the reference.
        form: what becomes of the scores: `sigmoid`; `hinge`, max(0, 1 − β(s_w − s_l)); `robust`, see `smoothing`;
            `ipo`, (h − 1/(2β))² with h the difference of the *means* over each answer's tokens; `simpo`, −log σ(β(m_w −
            m_l) − γ) with m the mean of log π, which needs no reference, a β of 2 or more, and a γ.
        smoothing: share of pairs believed to be labelled the wrong way round, ε (below 0.5): the loss is
            (1 − ε)·L(s_w − s_l) + ε·L(s_l − s_w); of `robust`, unbiased, ((1 − ε)·L(s_w − s_l) − ε·L(s_l − s_w)) /
            (1 − 2ε).
        gamma: γ, the margin that β(s_w − s_l) should have: it is taken off it (not of `ipo`).
        likelihood: α: adds α times the mean negative log-probability of the chosen answer's tokens.
        reference: π_ref is the model as training `start`s (the held base with the adapter's initial state), or the
            pristine `base`, always `precomputed`.
        precomputed: π_ref's log-probabilities are a hidden row stage, computed once and shared by trials, which saves a
            forward pass a step from the second epoch on. In bf16 policy and reference are then rounded apart, in other
            passes: margins of SmolLM2-135M begin between −0.1 and 0.1 instead of at 0 [measured]. Otherwise each bin
            has both in turn, for which a second copy of what trains is kept.

    Raises:
        InvalidField: what a form has no use for, such as label smoothing together with `ipo`; an adapter with dropout,
            which the reference would not have.

    Property tested: log 2 at the start, exactly, in bf16 too, and 1/(4β²) for IPO; margins grow; sums for DPO and means
    for IPO; packed pairs have the loss of separate ones; swapped answers turn the gradient round; the reference is the
    adapter's start, after a resumption too; precomputed, it gives the same loss in fp32.
    """

    method = "align.dpo"
    papers = (
        Paper("Balancing the Budget: Understanding Trade-offs Between Supervised and Preference-Based Finetuning"),
        Paper("OpenBezoar: Small, Cost-Effective and Open Models Trained on Mixes of Instruction Data"),
        Paper("Advanced Natural-based interaction for the ITAlian language: LLaMAntino-3-ANITA"),
    )
    version = 2  # the reference is computed beside the policy
    needs = {"prompt": "messages", "chosen": "string", "rejected": "string"}

    beta: Annotated[float, Field(gt=0)] = 0.1
    form: Literal["sigmoid", "hinge", "robust", "ipo", "simpo"] = "sigmoid"
    smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    gamma: Annotated[float, Field(ge=0)] = 0.0
    likelihood: Annotated[float, Field(ge=0)] = 0.0
    reference: Literal["start", "base"] = "start"
    precomputed: bool = False

    def check(self) -> None:
        if self.smoothing and self.form == "ipo":
            raise InvalidField("IPO has no label smoothing", where="Dpo.smoothing", do='use form="sigmoid", or 0')
        if self.form == "robust" and not self.smoothing:
            raise InvalidField(
                "without wrong labels it is the sigmoid", where="Dpo.smoothing", do="say which share of them is wrong"
            )
        if self.gamma and self.form == "ipo":
            raise InvalidField("IPO has a margin of its own, 1/(2β)", where="Dpo.gamma", do="change beta, or use 0")
        if self.form == "simpo" and (self.precomputed or self.reference != "start"):
            name = "precomputed" if self.precomputed else "reference"
            raise InvalidField("SimPO has no reference", where=f"Dpo.{name}", do="leave it out")

    def suits(self, adapter: Adapter) -> None:
        if getattr(adapter, "dropout", 0.0):
            raise InvalidField(
                "with dropout the policy differs from its reference before it has learnt anything",
                where="Train.adapter.dropout",
                do="use 0",
            )

    def prepare(self, rows: Stage, start: Start) -> Stage:
        pairs = TokenisedPairs(rows=rows, model=start.pristine, max_length=start.max_length)
        if not self._in_rows:
            return pairs
        if self.reference == "base":
            return ReferenceLogprobs(rows=pairs, model=start.pristine, base=Float(), dtype=start.dtype)
        if start.adapter.identity_at_start:  # neither rank nor seed matters, so that a sweep over them shares one
            return ReferenceLogprobs(rows=pairs, model=start.model, base=start.base, dtype=start.dtype)
        return ReferenceLogprobs(
            rows=pairs,
            model=start.model,
            base=start.base,
            adapter=start.adapter,
            seed=start.seed,
            dtype=start.dtype,
        )

    def length(self, row: Row) -> int:
        return pair_length(row)

    def tokens(self, row: Mapping[str, Any], reader: Reader) -> float:
        return sum(pair_tokens(row, reader))

    def collate(self, places: Sequence[int], rows: Sequence[Row], weights: Sequence[float]) -> Batch:
        import torch

        tensors = pack_pairs(rows) | {"weights": torch.tensor(weights, dtype=torch.float32)}
        if self._in_rows:
            found = [[row["reference_chosen"], row["reference_rejected"]] for row in rows]
            tensors["reference"] = torch.tensor(found)
        return Batch(tuple(places), tensors, weight=float(sum(weights)), tokens=tensors["input_ids"].numel())

    @property
    def _in_rows(self) -> bool:
        """Whether the rows say what the reference does."""
        return self.form != "simpo" and (self.precomputed or self.reference == "base")

    @property
    def recalls(self) -> tuple[str, ...]:
        return () if self._in_rows or self.form == "simpo" else ("reference",)

    def recall(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"reference": answer_logprobs(model, batch.tensors, len(batch.rows), graph=False)[0].detach()}

    def loss(self, model: nn.Module, batch: Batch, context: LossContext) -> LossOut:
        import torch

        given, weights = batch.tensors, batch.tensors["weights"]
        logprobs, tokens = answer_logprobs(model, given, len(batch.rows))
        scores = logprobs / tokens if self.form == "simpo" else logprobs - given["reference"]
        each = self._each(scores, tokens)
        if self.likelihood:
            each = each - self.likelihood * logprobs[:, 0] / tokens[:, 0]
        with torch.no_grad():
            margin = self.beta * (scores[:, 0] - scores[:, 1])
            shown = {
                "accuracy": (margin > 0).float(),
                "margin": margin,
                "logprob_chosen": logprobs[:, 0],
                "logprob_rejected": logprobs[:, 1],
            }
            metrics = {name: float((value * weights).sum()) for name, value in shown.items()}
        return LossOut((each * weights).sum(), batch.weight, each.detach(), metrics)

    def _each(self, scores: Tensor, tokens: Tensor) -> Tensor:
        """Each pair's loss, of both answers' scores [pairs, 2] and lengths."""
        from torch.nn.functional import logsigmoid, relu

        if self.form == "ipo":
            means = scores / tokens
            return (means[:, 0] - means[:, 1] - 1 / (2 * self.beta)) ** 2

        def one(margin: Tensor) -> Tensor:
            above = margin - self.gamma
            return relu(1 - above) if self.form == "hinge" else -logsigmoid(above)

        margin, wrong = self.beta * (scores[:, 0] - scores[:, 1]), self.smoothing
        if self.form == "robust":
            return ((1 - wrong) * one(margin) - wrong * one(-margin)) / (1 - 2 * wrong)
        return (1 - wrong) * one(margin) + wrong * one(-margin)
