"""What continuous batching calls: who owns a token, what comes out, and requests nobody waits for any more."""

import queue
from types import SimpleNamespace

import pytest
import torch

from graftline.kernels.grouped_lora import BASE
from graftline.stages.lm.batch_hooks import Pending, Router, Steering
from graftline.stages.lm.drawing import Turn
from graftline.stages.lm.engine import Sampling
from graftline.stages.lm.load import load_tokenizer

from .conftest import ask


@pytest.fixture(scope="module")
def tokenizer(tiny_directory):
    return load_tokenizer(tiny_directory)


@pytest.fixture
def pending(tokenizer):
    end = tokenizer.eos_token_id
    turn = Turn(Sampling(max_new_tokens=4), prompt=3, limit=4, ends=[end], tokenizer=tokenizer)
    return Pending("7", ask("hello"), [1, 2, 3], turn, slot=2, events=queue.SimpleQueue())


def state(pending, initial, generated):
    return SimpleNamespace(request_id=pending.key, initial_tokens=initial, generated_tokens=generated)


def future(pending, *, length, new, initial=(1, 2, 3), generated=()):
    told = state(pending, list(initial), list(generated))
    return SimpleNamespace(state=told, query_length=length, has_new_token=new)


def output(pending, tokens=(), *, finished=False, error=None):
    return SimpleNamespace(
        request_id=pending.key, generated_tokens=list(tokens), error=error, is_finished=lambda: finished
    )


def test_tokens_survive_being_put_back_in_the_queue(pending):
    assert pending.tokens() == []
    pending.state = state(pending, [1, 2, 3], [8, 9])
    assert pending.tokens() == [8, 9]
    pending.state = state(pending, [1, 2, 3, 8, 9], [10])  # the loop made its answer so far part of the prompt
    assert pending.tokens() == [8, 9, 10]


def test_a_request_is_settled_once(pending, tokenizer):
    words = tokenizer.encode("hello", add_special_tokens=False)
    pending.end(words)
    pending.end((), error="too late")
    pending.end((), cancelled=True)
    assert pending.over and pending.error is None and pending.answer.text == "hello"
    assert pending.answer.tokens_in == 3 and pending.events.qsize() == 1


def test_tokens_go_to_their_requests_adapter(pending):
    used = []
    steering = Steering({pending.key: pending}, SimpleNamespace(use=used.append))
    gone = SimpleNamespace(key="gone")
    batch = [
        future(pending, length=3, new=True),
        future(gone, length=2, new=True),
        future(pending, length=1, new=False),
    ]
    steering.prepare_tensor_args(batch, torch.zeros(0))
    assert used == [[2, 2, 2, BASE, BASE, 2]]
    assert steering.turns == [pending.turn, None] and steering.answers == [[], []]


def test_the_routers_deliveries(pending, tokenizer):
    router = Router({pending.key: pending})
    router.deliver(output(SimpleNamespace(key="gone"), finished=True))
    router.deliver_batch([output(pending)])
    assert pending.events.get_nowait() is pending and not pending.over  # a new token
    router.deliver(output(pending, [tokenizer.eos_token_id], finished=True))
    assert pending.answer.finish == "stop" and pending.answer.tokens_out == 1


def test_an_error_of_the_loop_is_the_requests(pending):
    Router({pending.key: pending}).deliver(output(pending, error="out of memory"))
    assert pending.error == "out of memory" and pending.answer is None
