"""The queue: once each, never twice at the same time, later after failures, an orderly end."""

from __future__ import annotations

import asyncio

from tests.virtual_time import run_virtually

from finetune_operator.control.workqueue import CALM, CROWD, LAST_BACKOFF, LATEST, WorkQueue


async def drain(queue: WorkQueue[str], work: object, until: asyncio.Event, concurrency: int = 4) -> None:
    """Works until the event is set."""
    running = asyncio.create_task(queue.run(work, concurrency))  # type: ignore[arg-type]
    await asyncio.wait_for(until.wait(), 20)
    queue.close()
    await running


async def test_a_key_that_waits_is_worked_on_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    done, end = [], asyncio.Event()

    async def work(key: str) -> None:
        done.append(key)
        if key == "last":
            end.set()

    for key in ("a", "a", "b", "a", "last"):
        queue.add(key)
    assert queue.depth == 3
    await drain(queue, work, end, concurrency=1)
    assert done == ["a", "b", "last"]


async def test_a_key_that_is_added_during_its_pass_gets_one_more_and_never_two_at_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    inside = most = passes = 0
    end = asyncio.Event()

    async def work(key: str) -> None:
        nonlocal inside, most, passes
        inside, passes = inside + 1, passes + 1
        most = max(most, inside)
        if passes == 1:
            for _ in range(5):
                queue.add(key)
        await asyncio.sleep(0)
        inside -= 1
        if passes == 2:
            end.set()

    queue.add("a")
    await drain(queue, work, end)
    assert (passes, most) == (2, 1)
    assert queue.depth == 0


async def test_concurrency_is_bounded_and_used() -> None:
    queue: WorkQueue[int] = WorkQueue()
    inside = most = done = 0
    end = asyncio.Event()

    async def work(_: int) -> None:
        nonlocal inside, most, done
        inside += 1
        most = max(most, inside)
        for _ in range(3):
            await asyncio.sleep(0)
        inside, done = inside - 1, done + 1
        if done == 50:
            end.set()

    for key in range(50):
        queue.add(key)
    await drain(queue, work, end, concurrency=7)  # type: ignore[arg-type]
    assert most == 7


async def test_delays_double_are_bounded_and_start_again_after_success() -> None:
    queue: WorkQueue[str] = WorkQueue()
    delays = [queue.retry("a") for _ in range(14)]
    for number, delay in enumerate(delays):
        expected = min(LAST_BACKOFF, 0.5 * 2**number)
        assert 0.8 * expected <= delay <= 1.2 * expected
    queue.succeeded("a")
    assert queue.retry("a") < 0.7
    assert queue.retry("b", at_least=30) == 30
    queue.close()


async def test_of_several_delays_the_earliest_counts_and_forgetting_ends_them() -> None:
    queue: WorkQueue[str] = WorkQueue()
    end = asyncio.Event()

    async def work(key: str) -> None:
        end.set()

    queue.add_after("late", 3600)
    queue.add_after("late", 0)
    queue.add_after("late", 3600)
    queue.add_after("forgotten", 3600)
    queue.forget("forgotten")
    await drain(queue, work, end)


async def test_closing_waits_for_the_passes_under_way_and_begins_none() -> None:
    queue: WorkQueue[str] = WorkQueue()
    begun, ended = [], []
    release = asyncio.Event()

    async def work(key: str) -> None:
        begun.append(key)
        await release.wait()
        ended.append(key)

    queue.add("a")
    queue.add("b")
    running = asyncio.create_task(queue.run(work, 1))
    while not begun:
        await asyncio.sleep(0)
    queue.close()
    await asyncio.sleep(0)
    assert not running.done()
    release.set()
    await asyncio.wait_for(running, 20)
    assert (begun, ended) == (["a"], ["a"])


async def test_the_age_of_the_oldest_counts_waiting_and_running_keys() -> None:
    now = 0.0
    queue: WorkQueue[str] = WorkQueue(clock=lambda: now)
    assert queue.oldest_seconds() == 0
    queue.add("a")
    now = 5.0
    queue.add("b")
    now = 7.0
    assert queue.oldest_seconds() == 7
    queue.close()


async def test_first_come_first_served_and_what_follows_waits_behind() -> None:
    queue: WorkQueue[str] = WorkQueue()
    done, end = [], asyncio.Event()

    async def work(key: str) -> None:
        done.append(key)
        if key == "a" and done.count("a") == 1:
            for _ in range(3):
                queue.add("a")  # what its own writes bring about
        if len(done) == 4:
            end.set()

    for key in ("a", "b", "c"):
        queue.add(key)
    queue.add("a")
    await drain(queue, work, end, concurrency=1)
    assert done == ["a", "b", "c", "a"]


async def test_a_delay_that_is_over_during_a_pass_brings_one_more() -> None:
    queue: WorkQueue[str] = WorkQueue()
    done, end = [], asyncio.Event()

    async def work(key: str) -> None:
        done.append(key)
        if len(done) == 1:
            queue.add_after(key, 0)
            await asyncio.sleep(0.01)
        else:
            end.set()

    queue.add("a")
    await drain(queue, work, end)
    assert done == ["a", "a"]


async def _starting(
    at_once: int, seconds: float, until: float, concurrency: int = CROWD
) -> tuple[list[str], list[str], list[float]]:
    """Every so many seconds so many jobs come; each is started, and told of when the queue lets it. Virtual time."""
    loop = asyncio.get_running_loop()
    queue: WorkQueue[str] = WorkQueue(loop.time)
    started: list[str] = []
    told: list[str] = []
    delays: list[float] = []
    first: dict[str, float] = {}

    async def work(key: str) -> None:
        await asyncio.sleep(0.01)
        if key not in first:
            first[key] = loop.time()
            started.append(key)
            if queue.postpone(key):
                queue.add(key)  # what its children's events bring about
                return
        told.append(key)
        delays.append(loop.time() - first[key])

    running = asyncio.create_task(queue.run(work, concurrency))
    while loop.time() < until:
        for number in range(at_once):
            queue.add(f"{loop.time():.2f}-{number}")
        await asyncio.sleep(seconds)
    await asyncio.sleep(2 * LATEST)
    queue.close()
    await running
    return started, told, delays


def test_jobs_that_come_one_after_the_other_are_told_of_at_once_however_soon() -> None:
    started, told, delays = run_virtually(_starting(1, 0.02, 5.0))
    assert len(started) > 100
    assert started == told
    assert max(delays) == 0


def test_in_a_burst_all_are_started_before_the_first_is_told_of_and_each_is_told_of_once() -> None:
    started, told, delays = run_virtually(_starting(CROWD, CALM / 10, 5.0))
    assert len(started) > 100
    assert sorted(told) == sorted(started)
    assert min(delays) >= CALM
    assert max(delays) < 5.0 + 4 * CALM


def test_nobody_waits_longer_than_the_bound_while_a_burst_does_not_end() -> None:
    started, told, delays = run_virtually(_starting(CROWD, CALM / 2, 4 * LATEST))
    assert sorted(told) == sorted(started)
    assert LATEST <= max(delays) < LATEST + 1


def test_a_burst_of_which_nothing_more_comes_is_told_of() -> None:
    """Found by `make soak`: who waits for the next key must hear that one was postponed."""
    started, told, delays = run_virtually(_starting(CROWD, 1.0, 0.5, concurrency=2 * CROWD))
    assert sorted(told) == sorted(started)
    assert CALM <= min(delays) <= max(delays) <= 3 * CALM


def test_what_waits_counts_and_is_forgotten_with_its_object() -> None:
    queue: WorkQueue[str] = WorkQueue(clock=lambda: 0.0)
    assert not queue.postpone("b")
    for number in range(CROWD):
        queue.add(f"a{number}")
    assert queue.postpone("b")
    queue.add("b")
    assert queue.depth == CROWD + 1
    queue.forget("b")
    assert queue.depth == CROWD
