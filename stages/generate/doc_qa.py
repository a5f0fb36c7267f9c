"""Questions about documents, and answers that rest on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from graftline.stages.expected import (
    FILLER,
    UNKNOWN,
    Expected,
    Given,
    Volume,
    answered,
    average,
    product,
)
from graftline.stages.generate.bm25 import Bm25, terms
from graftline.stages.generate.children import Children, question_of
from graftline.stages.generate.passage_prompts import ANSWER, ASK, POINTING, cited_in, grounding, questions_in
from graftline.stages.generate.passages import cut
from graftline.stages.generate.questions import CUT_OFF, Question, Questions, Reply, turns
from graftline.stages.generate.rouge import Pool, words
from graftline.stages.generate.rules import phrases
from graftline.stages.rows import Columns
from graftline.stages.shapes import Made, Outcome, Rounds, RoundsState
from graftline.stages.specification import Paper
from graftline.stages.stage import Context, Model, Rows, Stage

if TYPE_CHECKING:
    from graftline.stages.lm.engine import Answer, Request, Sampling

LEAST_WORDS = 3
ASKED = 0.8
"""Share of the questions that are worth an answer, before anything is known."""
QUESTION, SENTENCES = 15, 50
"""Tokens of a question, and of an answer in a few sentences, before anything is known."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage: its id, its document's row, and its text with the document's tags before it."""

    id: str
    row: Mapping[str, Any]
    text: str


@dataclass(frozen=True, slots=True)
class Written:
    """A question, the passages its answer may rest on, and how new it is."""

    text: str
    passage: Passage
    found: tuple[Passage, ...] = ()
    max_rouge: float | None = None
    nearest: str | None = None


@dataclass
class Corpus(RoundsState):
    """The documents, and what was asked about them."""

    children: Children = field(kw_only=True)
    questions: Questions = field(kw_only=True)
    passages: list[Passage] = field(default_factory=list)
    index: Bm25 = field(default_factory=lambda: Bm25(()))
    pool: Pool = field(default_factory=Pool)
    ids: dict[str, str] = field(default_factory=dict)
    """Key of a question in the pool → id of its row."""


class DocQa(Rounds):
    """Makes closed-book questions and answers of documents (RAG vs Fine-tuning: Pipelines, Tradeoffs).

    Documents are cut into passages; the teacher writes questions about each; every question is answered from the
    passages that BM25 finds for it in the whole corpus, each sentence with the passage it rests on. The row holds the
    question and the answer alone. Filtered, with the reason, are questions that point to the passage, are too like
    another (ROUGE-L, exactly, over all passages), or do not find their own passage again; answers that were not found,
    cut off, or have too few of their words in the passages they name. What cannot be read goes back to the teacher
    `retries` times, then the row has failed.

    A row's parents are its question's document and those its answer names, so its group joins theirs: split documents
    first, or questions about one lie in two parts. PDF is not read; a scanned table must come as lines of text.

    Args:
        documents: rows whose last user turn is the text: `read.Jsonl(path=…, prompt="{text}", keep=("title",))`.
        teacher: the model that asks and answers.
        count: questions for each passage.
        tags: text columns that are shown with each passage (title, place, topic).
        passage_words: the longest passage, in words.
        top_k: passages an answer may rest on.
        grounded: the least share of an answer's words, without its question's, that its passages have (0 to 1).
        novelty: the largest ROUGE-L F to any other question, 0 to 1.
        forbidden: phrases no question or answer may hold, found as whole words, without regard to case.
        temperature: of the questions, from 0; answers are the likeliest.
        top_p: above 0, up to 1, of the questions.
        max_new_tokens: of a list of questions, and of an answer.
        retries: how often what cannot be read goes back.
        seed: another seed, other questions.

    Adds `evidence` (ids of the passages named, `<row>:<number>`), `grounded` (0 to 1), `max_rouge` and `nearest_id`
    (of the questions that were new before it).

    The properties its tests check: a kept question finds its own passage, names at least one that its answer saw, and
    is no more than `novelty` like another; rows do not depend on how answers were batched.
    """

    method = "generate.doc_qa"
    papers = (Paper("RAG vs Fine-tuning: Pipelines, Tradeoffs, and a Case Study on Agriculture"),)
    adds = {"evidence": "list<string>", "grounded": "float64", "max_rouge": "float64", "nearest_id": "string"}

    documents: Rows
    teacher: Model
    count: Annotated[int, Field(ge=1)] = 3
    tags: tuple[str, ...] = ()
    passage_words: Annotated[int, Field(ge=20)] = 200
    top_k: Annotated[int, Field(ge=1)] = 3
    grounded: Annotated[float, Field(ge=0, le=1)] = 0.5
    novelty: Annotated[float, Field(gt=0, le=1)] = 0.7
    forbidden: tuple[str, ...] = POINTING
    temperature: Annotated[float, Field(ge=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    retries: Annotated[int, Field(ge=0)] = 1
    seed: int = 0

    def columns_needed(self) -> Mapping[str, Columns]:
        return {"documents": {"messages": "messages", "group": "string", **dict.fromkeys(self.tags, "string")}}

    def asks(self) -> Stage:
        return self.teacher

    def start(self, context: Context, **inputs: Any) -> Corpus:
        state = Corpus(children=Children(self.method, self.teacher), questions=Questions(self.seed, self.retries))
        columns = list(dict.fromkeys(["id", "group", "messages", *self.tags]))
        for row in inputs["documents"].rows(columns).to_pylist():
            tags = "".join(f"{name}: {row[name]}\n" for name in self.tags if row[name])
            found = cut(question_of(row["messages"]), self.passage_words)
            state.passages += [
                Passage(f"{row['id']}:{number}", row, f"{tags}{text}") for number, text in enumerate(found)
            ]
            if not found:
                empty = self._row(state, row, "", {"round": 0, "seed": None})
                state.made.append(Made(empty, "failed", "the document has no text"))
        state.index = Bm25([passage.text for passage in state.passages])
        for passage in state.passages:
            asked = turns(None, ASK.format(passage=passage.text, count=self.count))
            sampling = self._sampling(self.temperature, self.top_p)
            state.questions.ask(Question(passage.id, asked, sampling, passage))
        return state

    def propose(self, state: Corpus, round: int) -> Sequence[Request]:
        return state.questions.requests()

    def absorb(self, state: Corpus, round: int, answers: Sequence[tuple[Request, Answer]]) -> None:
        for reply in state.questions.replies(round, answers, self._read):
            if isinstance(reply.question.about, Written):
                self._answered(state, reply)
            elif reply.failed:
                passage: Passage = reply.question.about
                row = self._row(state, passage.row, passage.text, reply.gen, evidence=[passage.id])
                state.made.append(Made(row, "failed", reply.failed))
            else:
                for number, text in enumerate(reply.value):
                    self._asked(state, reply, f"{reply.question.key}/{number}", text)

    def finish(self, state: Corpus) -> Iterable[Made]:
        for made in state.made:
            nearest = made.row["nearest_id"]
            yield Made({**made.row, "nearest_id": state.ids.get(nearest)}, made.outcome, made.reason)

    def expected(self, given: Given) -> Expected:
        """Each passage is asked for `count` questions, and most of these for an answer; how many answers rest on their
        passages cannot be known."""
        rows, reader = given.rows(self.documents), given.reader(self.teacher)
        found = [cut(question_of(row.get("messages")), self.passage_words) for row in rows.sample]
        passages = product(rows.count, average([len(each) for each in found]))
        made = answered({"messages": turns(None, (FILLER * QUESTION).strip())}, SENTENCES)
        volume = Volume(product(passages, self.count), (made,), "<=")
        length = average([reader.asked(turns(None, text)) for each in found for text in each])
        if length is None:
            return Expected(volume, UNKNOWN)
        listing = reader.text(ASK) + length
        asking = reader.text(ANSWER) + length * min(self.top_k, passages or self.top_k) + QUESTION
        listed = reader.written(self.max_new_tokens, QUESTION * self.count)
        usage = reader.usage(passages, listing, listed, rows.mark, self.retries)
        answering = reader.written(self.max_new_tokens, SENTENCES)
        usage += reader.usage(product(passages, self.count, ASKED), asking, answering, "~", self.retries)
        return Expected(volume, usage)

    def _read(self, question: Question, text: str, cut_off: bool) -> Any:
        about = question.about
        if isinstance(about, Passage):
            return questions_in(text, cut_off, self.count)
        return (text, ()) if cut_off else cited_in(text, len(about.found))

    def _asked(self, state: Corpus, reply: Reply, key: str, text: str) -> None:
        """Takes in a question: asks for its answer, or filters it."""
        passage: Passage = reply.question.about
        found = tuple(state.passages[position] for position in state.index.search(text, self.top_k))
        max_rouge, nearest = state.pool.nearest(said := words(text))
        pointing = phrases(self.forbidden)
        reason = ""
        if len(terms(text)) < LEAST_WORDS:
            reason = f"has fewer than {LEAST_WORDS} words"
        elif pointing is not None and pointing.search(text.lower()):
            reason = "points to the passage"
        elif not said:
            reason = "has no word in a-z and 0-9"
        elif max_rouge > self.novelty:
            reason = f"is more like another question than ROUGE-L {self.novelty:g}"
        elif passage not in found:
            reason = f"does not find its own passage among {self.top_k}"
        if reason:
            row = self._row(
                state, passage.row, text, reply.gen, evidence=[passage.id], max_rouge=max_rouge, nearest_id=nearest
            )
            state.made.append(Made(row, "filtered", reason))
            return
        state.pool.add(key, said)
        shown = "\n\n".join(f"[{number}] {each.text}" for number, each in enumerate(found, 1))
        asked = turns(None, ANSWER.format(passages=shown, question=text))
        about = Written(text, passage, found, max_rouge, nearest)
        state.questions.ask(Question(key, asked, self._sampling(0.0, 1.0), about))

    def _answered(self, state: Corpus, reply: Reply) -> None:
        about: Written = reply.question.about
        answer, numbers = reply.value or (reply.text, ())
        named = [about.found[number - 1] for number in numbers]
        share = grounding(answer, about.text, [passage.text for passage in named])
        pointing = phrases(self.forbidden)
        outcome: Outcome = "filtered"
        if reply.failed:
            outcome, reason = "failed", reply.failed
        elif reply.value is None:
            reason = "the passages do not answer it"
        elif not named:
            reason = CUT_OFF
        elif pointing is not None and pointing.search(answer.lower()):
            reason = "points to the passage"
        elif share < self.grounded:
            reason = f"fewer than {self.grounded:g} of its words are in the passages it names"
        else:
            outcome, reason = "kept", ""
        row = self._row(
            state,
            about.passage.row,
            about.text,
            reply.gen,
            *(passage.row for passage in named),
            answer=answer,
            evidence=[passage.id for passage in named],
            grounded=share if named else None,
            max_rouge=about.max_rouge,
            nearest_id=about.nearest,
        )
        state.ids[reply.question.key] = row["id"]
        state.made.append(Made(row, outcome, reason))

    def _row(
        self, state: Corpus, row: Mapping[str, Any], text: str, gen: Mapping[str, Any], *more: Mapping[str, Any],
        answer: str = "", **columns: Any,
    ) -> dict[str, Any]:  # fmt: skip
        said = [{"role": "user", "content": text}, *([{"role": "assistant", "content": answer}] if answer else [])]
        return state.children.row((row, *more), said, gen, **{**dict.fromkeys(self.adds), **columns})

    def _sampling(self, temperature: float, top_p: float) -> Sampling:
        from graftline.stages.lm.engine import Sampling

        return Sampling(temperature, top_p, self.max_new_tokens)
