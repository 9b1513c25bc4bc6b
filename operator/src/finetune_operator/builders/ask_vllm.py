"""The smoke test of a vLLM server: its startup probe, run by the kubelet in vLLM's own container.

The text of this file is the probe's command, so it stands on the standard library alone. vLLM's /health says that the
engine lives, not that the model answers. An answer that will not do is final: it is written where the kubelet looks
for last words, and the server is ended. Until the server answers at all the probe only fails, and is asked again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.error
import urllib.request
from typing import Any

TERMINATION_LOG = "/dev/termination-log"


def main(wanted: dict[str, Any]) -> int:
    """0: the answer will do. 1: it will not, or there is none yet."""
    with_prompt = {"prompt": wanted["prompt"] or held_out(wanted["report"]) or "Hello"}
    if wanted["chat"]:
        with_prompt = {"messages": [{"role": "user", "content": with_prompt["prompt"]}]}
    body = {"model": wanted["model"], "max_tokens": wanted["tokens"], "temperature": 0, **with_prompt}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(wanted["url"], json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=wanted["timeout"]) as response:
            choice = json.load(response)["choices"][0]
    except urllib.error.HTTPError as error:
        if error.code >= 500 or error.code == 429:
            return later(error)  # it is still starting, or overloaded
        return give_up(wanted, f"the server refused the question with {error.code}: {error.read(400)!r}")
    except TimeoutError:
        return give_up(wanted, f"there was no answer within {wanted['timeout']} seconds")
    except (OSError, ValueError, KeyError, IndexError) as error:
        return later(error)
    answer = (choice.get("message") or {}).get("content") or choice.get("text") or ""
    if (choice.get("message") or {}).get("tool_calls"):
        answer += json.dumps(choice["message"]["tool_calls"])
    if not answer.strip():
        return give_up(wanted, "the answer is empty")
    if wanted["contains"] and wanted["contains"] not in answer:
        return give_up(wanted, f"the answer does not contain {wanted['contains']!r}; it is {answer.strip()[:400]!r}")
    return 0


def held_out(report: str) -> str:
    """The first question that Evaluate kept, or nothing."""
    try:
        with open(report, encoding="utf-8") as file:
            return str(json.load(file)["samples"][0]["prompt"])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return ""


def later(error: Exception) -> int:
    """Nothing is known yet. The kubelet tells it in its Events."""
    print(f"no answer yet: {error}")
    return 1


def give_up(wanted: dict[str, Any], fault: str) -> int:
    """Leave a summary as our own server does, and end vLLM, which is process 1 of the container."""
    failure = {"reason": "SmokeFailed", "message": f"Smoke test: {fault}."}
    with open(wanted.get("words", TERMINATION_LOG), "w", encoding="utf-8") as file:
        json.dump({"stage": "Serve", "ok": False, "failure": failure}, file)
    os.kill(wanted.get("process", 1), signal.SIGTERM)
    print(failure["message"])
    return 1


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
