"""A finished run's service, found and kept up."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from graftline.pipelines import serving
from graftline.stages.errors import UnknownStage

CONFIG = "applications:\n- name: tickets\n  route_prefix: /tickets\n  args: {}\n"

SERVED = """
from graftline.stages import Llm, serve

def pipeline():
    return serve.Service(model=Llm("tiny", engine="scripted"), label="tiny talk")
"""


def with_config(run):
    line = next(each for each in run.stages if each["kind"] == "service")
    Path(line["path"], "serve.yaml").write_text(CONFIG)
    run.file(line, "note.json", {})
    return run.write()


def test_the_configuration_is_the_services(quickstart):
    done = with_config(quickstart)
    for stage in (None, "Service"):
        assert serving.configuration(done, stage)["applications"][0]["name"] == "tickets"


def test_a_run_without_one_or_with_several_services_says_so(quickstart):
    with pytest.raises(UnknownStage, match="makes a report, no service"):
        serving.configuration(with_config(quickstart), "Compare")
    quickstart.stage("Service", "service", label="second")
    with pytest.raises(UnknownStage, match="has 2 services"):
        serving.configuration(quickstart.write())
    quickstart.stages = quickstart.stages[:-2]
    with pytest.raises(UnknownStage, match="no service that is made"):
        serving.configuration(quickstart.write())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_waiting_ends_with_a_signal(number):
    before = signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    timer.start()
    serving.wait()
    timer.join()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_a_service_answers_until_ctrl_c(tmp_path):
    (tmp_path / "served_pipeline.py").write_text(SERVED)
    environment = {**os.environ, "GRAFTLINE_STORE": str(tmp_path / "store")}
    command = [sys.executable, "-m", "graftline.pipelines", "run", str(tmp_path / "served_pipeline.py"), "--serve"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    told = next(line for line in process.stderr if line.startswith("serving "))
    url = told.split(" at ")[1].partition("/v1")[0]
    models = httpx.get(f"{url}/v1/models", trust_env=False).json()
    assert [model["id"] for model in models["data"]] == ["base"]
    asked = {"model": "base", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
    assert httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=60, trust_env=False).status_code == 200
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert told.startswith("serving base at") and "Traceback" not in error
    assert out.startswith("RESULT ") and len(out.splitlines()) == 1, "RESULT is the last line on stdout"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_finished_run_is_served_again(tmp_path, number):
    import openai

    (tmp_path / "served_pipeline.py").write_text(SERVED)
    environment = {**os.environ, "GRAFTLINE_STORE": str(tmp_path / "store")}
    command = [sys.executable, "-m", "graftline.pipelines"]
    run = [*command, "run", str(tmp_path / "served_pipeline.py")]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr

    with subprocess.Popen(
        [*command, "serve", "latest"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http://"), process.communicate(timeout=60)
            with httpx.Client(trust_env=False) as http:
                client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http)
                assert [model.id for model in client.models.list()] == ["base"]
                turns = [{"role": "user", "content": "hello"}]
                asked = {"model": "base", "messages": turns, "max_tokens": 8, "seed": 1}
                whole = client.chat.completions.create(**asked)
                assert whole.model == "base" and whole.usage.completion_tokens
                pieces = [piece.choices[0] for piece in client.chat.completions.create(**asked, stream=True)]
            assert whole.choices[0].message.content == "".join(piece.delta.content or "" for piece in pieces)
            assert len(pieces) > 3 and pieces[-1].finish_reason == whole.choices[0].finish_reason
            process.send_signal(number)
            out, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0 and not out, error
    assert "stopping" in error and "Traceback" not in error
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/v1/models", trust_env=False)
