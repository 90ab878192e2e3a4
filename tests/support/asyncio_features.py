"""What asyncio and its libraries can do, each as a function; as a program, runs all of them on the loop of the worker.

It prints a line of JSON for each: its name, and what went wrong, or null. Functions that are coroutines run in a loop
of their own, the others in a greenlet.
"""

from __future__ import annotations

if __name__ == "__main__":
    from gevent import monkey

    monkey.patch_all()

import asyncio
import concurrent.futures
import contextvars
import gc
import json
import multiprocessing
import os
import random
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from asyncio import events
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any

import gevent
import gevent.threadpool
from gevent import getcurrent
from gevent.hub import get_hub
from gevent.monkey import get_original
from greenlet import greenlet, settrace

FEATURES: dict[str, Callable[[], Any]] = {}
DEADLINE = 10  # seconds for each
OTHERS = 20  # greenlets or threads that do the same at once
PAUSE = 0.2  # seconds


def feature(function: Callable[[], Any]) -> Callable[[], Any]:
    """Have the program run it."""
    FEATURES[function.__name__] = function
    return function


async def nap(value: int = 0) -> int:
    """Return a number after a moment."""
    await asyncio.sleep(PAUSE)
    return value


def in_parallel(seconds: float) -> None:
    """Fail if what began so long ago has taken as long as one after the other takes."""
    assert seconds < OTHERS * PAUSE / 2, seconds


@feature
async def tasks_and_gather() -> None:
    begin = time.monotonic()
    naps = (asyncio.create_task(nap(number)) for number in range(OTHERS))
    assert await asyncio.gather(*naps) == list(range(OTHERS))
    in_parallel(time.monotonic() - begin)


@feature
async def wait_for() -> None:
    try:
        await asyncio.wait_for(asyncio.sleep(60), PAUSE)
    except asyncio.TimeoutError:
        return
    raise AssertionError("it did not end")


@feature
async def timeout_and_task_group() -> None:
    if sys.version_info < (3, 11):
        return
    try:
        async with asyncio.timeout(PAUSE):
            await asyncio.sleep(60)
    except TimeoutError:
        pass
    async with asyncio.TaskGroup() as group:
        task = group.create_task(nap(7))
    assert task.result() == 7
    failed = False
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(60))
            group.create_task(fails())
    except BaseException as error:  # an ExceptionGroup, of which Python 3.10 knows nothing
        failed = "unhandled errors" in str(error)
    assert failed


async def fails() -> None:
    raise ValueError("on purpose")


@feature
async def context_variables_and_current_task() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    async def change(number: int) -> None:
        variable.set(number)
        await nap()
        assert variable.get() == number
        assert asyncio.current_task() is not None

    await asyncio.gather(*map(change, range(5)))
    assert variable.get() == 0


@feature
async def cancellation() -> None:
    seen = []

    async def sleeper() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    task = asyncio.create_task(sleeper())
    await asyncio.sleep(0)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        seen.append("raised")
    assert seen == ["cancelled", "raised"]


@feature
async def synchronization() -> None:
    queue: asyncio.Queue[int] = asyncio.Queue(1)
    lock, event, condition = asyncio.Lock(), asyncio.Event(), asyncio.Condition()

    async def producer() -> None:
        for number in range(3):
            await queue.put(number)
        async with lock:
            event.set()
        async with condition:
            condition.notify_all()

    async with condition:
        task = asyncio.create_task(producer())
        assert [await queue.get() for _ in range(3)] == [0, 1, 2]
        await event.wait()
        await condition.wait()
    await task


@feature
async def asynchronous_generators_are_finalized() -> None:
    seen = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            seen.append("finally")

    async for _ in numbers():
        break
    gc.collect()
    await nap()
    assert seen == ["finally"]


@feature
def no_greenlet_sees_the_loop_while_it_waits() -> None:
    waiting = gevent.spawn(asyncio.run, nap())
    gevent.sleep(PAUSE / 5)
    assert events._get_running_loop() is None
    assert sys.get_asyncgen_hooks() == (None, None)
    waiting.get()


@feature
def no_greenlet_sees_the_loop_while_a_step_blocks() -> None:
    async def blocks() -> None:
        loop = asyncio.get_running_loop()
        time.sleep(PAUSE)
        assert asyncio.get_running_loop() is loop
        assert asyncio.current_task() is not None

    waiting = gevent.spawn(asyncio.run, blocks())
    gevent.sleep(PAUSE / 5)
    assert events._get_running_loop() is None
    assert sys.get_asyncgen_hooks() == (None, None)
    waiting.get()


@feature
def no_switch_shows_a_running_loop() -> None:
    """At each switch to the hub, and from there to others, whatever a step does, also in a greenlet of its own."""
    chance = random.Random(16)
    switches, seen = 0, 0

    def look(event: str, between: tuple[greenlet, greenlet]) -> None:
        nonlocal switches, seen
        if get_hub() in between and between[1] not in inside:
            switches += 1
            seen += events._get_running_loop() is not None or sys.get_asyncgen_hooks() != (None, None)

    def block() -> None:
        time.sleep(chance.choice([0, 0.001, 0.002]))

    def block_thrice() -> None:
        for _ in range(3):
            block()

    def block_in_a_child() -> None:
        child = greenlet(block_thrice)  # as SQLAlchemy's async session does
        inside.add(child)
        child.switch()

    async def task() -> None:
        loop, this = asyncio.get_running_loop(), asyncio.current_task()
        inside.add(getcurrent())
        for _ in range(20):
            step = chance.choice([block, block_in_a_child, None, None])
            if step is None:
                await asyncio.sleep(chance.choice([0, 0.001]))
            elif chance.random() < 0.5:
                step()
            else:
                await loop.run_in_executor(None, block)
            assert asyncio.get_running_loop() is loop
            assert asyncio.current_task() is this

    async def tasks() -> None:
        await asyncio.gather(*(task() for _ in range(5)))

    inside: set[greenlet] = set()
    before = settrace(look)
    try:
        gevent.joinall([gevent.spawn(asyncio.run, tasks()) for _ in range(5)], raise_error=True)
    finally:
        settrace(before)
    assert switches > 500, switches
    assert seen == 0, (seen, switches)


@feature
def loops_in_many_greenlets() -> None:
    begin = time.monotonic()
    runs = [gevent.spawn(asyncio.run, nap(number)) for number in range(OTHERS)]
    gevent.joinall(runs, raise_error=True)
    assert [run.value for run in runs] == list(range(OTHERS))
    in_parallel(time.monotonic() - begin)


@feature
def loops_in_threads() -> None:
    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(OTHERS) as executor:
        assert list(executor.map(lambda number: asyncio.run(nap(number)), range(OTHERS))) == list(range(OTHERS))
    in_parallel(time.monotonic() - begin)


@feature
def a_loop_in_a_native_thread() -> None:
    pool = gevent.threadpool.ThreadPool(1)
    assert pool.apply(lambda: asyncio.run(nap(3))) == 3


@feature
async def functions_in_threads() -> None:
    begin = time.monotonic()
    loop = asyncio.get_running_loop()
    with concurrent.futures.ThreadPoolExecutor(OTHERS) as executor:
        await asyncio.gather(*(loop.run_in_executor(executor, time.sleep, PAUSE) for _ in range(OTHERS)))
    in_parallel(time.monotonic() - begin)
    assert await asyncio.to_thread(sum, [1, 2]) == 3


@feature
async def functions_in_native_threads() -> None:
    loop = asyncio.get_running_loop()
    executor = gevent.threadpool.ThreadPoolExecutor(2)
    assert await loop.run_in_executor(executor, sum, [1, 2]) == 3
    try:
        await loop.run_in_executor(executor, int, "x")
    except ValueError:
        return
    raise AssertionError("the error is lost")


@feature
async def functions_in_processes() -> None:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        assert await asyncio.get_running_loop().run_in_executor(executor, pow, 2, 3) == 8


@feature
async def a_native_thread_calls() -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    get_original("_thread", "start_new_thread")(lambda: loop.call_soon_threadsafe(future.set_result, 5), ())
    assert await future == 5


@feature
def a_greenlet_calls() -> None:
    ready: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        ready.append(asyncio.get_running_loop())
        await asyncio.sleep(60)

    serving = gevent.spawn(asyncio.run, serve())
    gevent.sleep(PAUSE / 5)
    assert asyncio.run_coroutine_threadsafe(nap(3), ready[0]).result(DEADLINE) == 3
    future = ready[0].create_future()
    gevent.spawn_later(PAUSE, future.set_result, 4)  # not thread-safe, and in one thread need not be
    waiting = asyncio.run_coroutine_threadsafe(asyncio.wait_for(future, DEADLINE), ready[0])
    assert waiting.result(DEADLINE) == 4
    serving.kill()


@feature
def a_greenlet_is_killed() -> None:
    seen = []

    async def sleeper() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            seen.append("finally")

    running = gevent.spawn(asyncio.run, sleeper())
    gevent.sleep(PAUSE / 5)
    running.kill()
    assert seen == ["finally"]
    assert asyncio.run(nap(1)) == 1


@feature
def a_timeout_of_gevent() -> None:
    try:
        with gevent.Timeout(PAUSE):
            asyncio.run(asyncio.sleep(60))
    except gevent.Timeout:
        pass
    else:
        raise AssertionError("it did not end")

    async def step() -> None:
        with suppress(gevent.Timeout), gevent.Timeout(PAUSE):
            time.sleep(60)
        await asyncio.sleep(0)

    asyncio.run(step())


@feature
def an_exit_in_a_task() -> None:
    async def leave() -> None:
        sys.exit(3)

    try:
        asyncio.run(leave())
    except SystemExit as error:
        assert error.code == 3
    assert asyncio.run(nap(1)) == 1


@feature
async def subprocesses() -> None:
    process = await asyncio.create_subprocess_exec("sh", "-c", "cat; exit 3", stdin=-1, stdout=-1)
    output, _ = await process.communicate(b"hello")
    assert (output, process.returncode) == (b"hello", 3)


async def echo_line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readline())
    await writer.drain()
    writer.close()


async def is_echoed(**options: Any) -> None:
    server_options = {"ssl": options.pop("server_ssl")} if options else {}
    server = await asyncio.start_server(echo_line, "127.0.0.1", 0, **server_options)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1], **options)
    writer.write(b"x" * 50_000 + b"\n")
    assert len(await reader.readline()) == 50_001
    writer.close()
    server.close()


@feature
async def streams() -> None:
    await is_echoed()


@feature
async def streams_with_tls() -> None:
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = f"{folder}/key.pem", f"{folder}/certificate.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
        done = await asyncio.create_subprocess_exec(*command, "-keyout", key, "-out", certificate, stderr=-3)
        assert await done.wait() == 0
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.load_cert_chain(certificate, key)
        client = ssl.create_default_context(cafile=certificate)
        await is_echoed(server_ssl=server, ssl=client, server_hostname="localhost")


@feature
async def names_are_resolved() -> None:
    assert await asyncio.get_running_loop().getaddrinfo("localhost", 80)


@feature
async def sockets_and_files() -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    await loop.sock_sendall(ours, b"hello")
    assert await loop.sock_recv(theirs, 10) == b"hello"
    readable = asyncio.Event()
    loop.add_reader(theirs, readable.set)
    loop.add_writer(theirs, lambda: None)
    assert loop.remove_writer(theirs)
    ours.send(b"x")
    await readable.wait()
    assert loop.remove_reader(theirs)
    ours.close()
    theirs.close()


@feature
def a_file_that_is_ready_while_a_step_blocks_costs_nothing() -> None:
    ours, theirs = socket.socketpair()

    async def step() -> None:
        asyncio.get_running_loop().add_reader(ours, lambda: ours.recv(10))
        theirs.send(b"x")
        begin = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - begin < 0.05
        asyncio.get_running_loop().remove_reader(ours)

    asyncio.run(step())
    ours.close()
    theirs.close()


@feature
def an_idle_loop_costs_nothing() -> None:
    running = gevent.spawn(asyncio.run, asyncio.sleep(60))
    begin = time.process_time()
    gevent.sleep(0.3)
    assert time.process_time() - begin < 0.05
    running.kill()


@feature
def a_busy_loop_lets_greenlets_run() -> None:
    async def busy() -> None:
        while not done:
            await asyncio.sleep(0)

    done: list[bool] = []
    running = gevent.spawn(asyncio.run, busy())
    begin = time.process_time()  # which other processes do not take from
    for _ in range(10):
        gevent.sleep(0.001)
    assert time.process_time() - begin < 0.5
    done.append(True)
    running.get()


@feature
def debug_mode() -> None:
    assert asyncio.run(nap(1), debug=True) == 1
    loop = asyncio.new_event_loop()
    loop.set_debug(True)
    future = loop.create_future()
    gevent.spawn_later(PAUSE, future.set_result, 4)
    assert loop.run_until_complete(future) == 4
    loop.close()


@feature
def a_loop_of_asyncio_itself() -> None:
    loop = asyncio.SelectorEventLoop()
    running = gevent.spawn(loop.run_until_complete, nap(2))
    gevent.sleep(PAUSE / 5)
    assert events._get_running_loop() is None
    assert running.get() == 2
    loop.close()


@feature
def async_to_sync_in_many_greenlets() -> None:
    from asgiref.sync import async_to_sync

    runs = [gevent.spawn(async_to_sync(nap), number) for number in range(OTHERS)]
    gevent.joinall(runs, raise_error=True)
    assert [run.value for run in runs] == list(range(OTHERS))


@feature
def async_to_sync_again_and_again_has_one_loop() -> None:
    from asgiref.sync import async_to_sync

    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    first = async_to_sync(loop)()
    assert async_to_sync(loop)() is gevent.spawn(async_to_sync(loop)).get() is first
    assert asyncio.run(loop()) is not first

    async def leave() -> None:
        sys.exit(3)

    first.call_soon(first.create_task, leave())
    gevent.sleep(PAUSE)
    assert async_to_sync(loop)() is first


@feature
async def sync_to_async_and_back() -> None:
    from asgiref.sync import async_to_sync, sync_to_async

    for sensitive in (True, False):
        assert await sync_to_async(lambda: async_to_sync(nap)(5), thread_sensitive=sensitive)() == 5
    begin = time.monotonic()
    await asyncio.gather(*(sync_to_async(time.sleep, thread_sensitive=False)(PAUSE) for _ in range(OTHERS)))
    in_parallel(time.monotonic() - begin)


@feature
async def anyio_library() -> None:
    import anyio
    import anyio.from_thread
    import anyio.to_thread

    def in_thread() -> None:
        anyio.from_thread.run(anyio.sleep, PAUSE)

    await anyio.to_thread.run_sync(in_thread)
    try:
        with anyio.fail_after(PAUSE):
            await anyio.sleep(60)
    except TimeoutError:
        pass
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, PAUSE)


@feature
async def httpx_and_aiohttp_libraries() -> None:
    import httpx
    from aiohttp import ClientSession, web

    async def hello(request: web.Request) -> web.Response:
        return web.Response(text="hello")

    application = web.Application()
    application.router.add_get("/", hello)
    runner = web.AppRunner(application, handle_signals=False)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"http://127.0.0.1:{port}/")).text == "hello"
    async with ClientSession() as session, session.get(f"http://127.0.0.1:{port}/") as response:
        assert await response.text() == "hello"
    await runner.cleanup()


@feature
async def redis_library() -> None:
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(os.environ["REDIS_URL"])
    await client.set("key", 1)
    assert await client.get("key") == b"1"
    pubsub = client.pubsub()
    await pubsub.subscribe("channel")
    await client.publish("channel", "x")
    async for message in pubsub.listen():
        if message["type"] == "message":
            assert message["data"] == b"x"
            break
    await pubsub.aclose()  # type: ignore[no-untyped-call]
    await client.aclose()


@feature
async def asyncpg_library() -> None:
    import asyncpg  # type: ignore[import-untyped]

    connection = await asyncpg.connect(os.environ["POSTGRESQL_URL"])
    assert await connection.fetchval("SELECT 1 + 1") == 2
    await connection.close()


@feature
async def sqlalchemy_library() -> None:
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(os.environ["POSTGRESQL_URL"].replace("postgresql", "postgresql+asyncpg"))
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT 1 + 1"))).scalar() == 2
    await engine.dispose()


def run(function: Callable[[], Any]) -> str | None:
    """Return what goes wrong with a feature."""
    running = gevent.spawn(outcome, function)
    try:
        failure: str | None = running.get(timeout=DEADLINE)
    except gevent.Timeout:
        running.kill(block=False)
        return "it does not end"
    if events._get_running_loop() is not None:
        return "a running loop was left behind"
    return failure


def outcome(function: Callable[[], Any]) -> str | None:
    """Run a feature, a coroutine in a loop."""
    try:
        result = function()
        if isinstance(result, Coroutine):
            asyncio.run(result)
    except BaseException:
        return traceback.format_exc()
    return None


if __name__ == "__main__":
    from django_websocket.asgi.policy import install
    from django_websocket.handler.sharing import share_with_asgiref

    install()
    share_with_asgiref(bool)
    for name, function in FEATURES.items():
        print(json.dumps([name, run(function)]), flush=True)
    print(json.dumps(["threads", threading.active_count()]), file=sys.stderr)
    subprocess.run(["true"], check=True)
