"""Channels' consumers, driven by the conversation itself.

Channels makes a task of each message, and has each handler of a synchronous consumer called in a thread. Neither is
needed here: an asynchronous consumer's handlers are awaited one after the other in the conversation's task, and those
of a synchronous one are called in a greenlet that is lent while there is something to handle. Channels itself is not
changed, and a consumer that changes how it is driven (`__call__`, and `dispatch` of a synchronous one) is left to it.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from inspect import getattr_static
from types import FrameType
from typing import Any, Protocol

from asgiref.sync import async_to_sync
from channels.consumer import AsyncConsumer, SyncConsumer, get_handler_name
from channels.exceptions import StopConsumer
from channels.layers import get_channel_layer
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import OriginValidator
from channels.sessions import InstanceSessionWrapper
from django.core.exceptions import ImproperlyConfigured
from django.utils.functional import SimpleLazyObject
from gevent import getcurrent
from gevent.hub import get_hub

from django_websocket import compat
from django_websocket.asgi.belongings import owner
from django_websocket.asgi.lending import away, lending_of_loop
from django_websocket.asgi.waiting import from_greenlet
from django_websocket.decorators import is_asgi, name_of, without_as_asgi
from django_websocket.exceptions import HandshakeFailed, WebSocketError
from django_websocket.pubsub.hub import closed_error
from django_websocket.transport.connection import Connection
from django_websocket.transport.forking import end_child, in_child
from django_websocket.transport.shared import shared_of_loop
from django_websocket.transport.turns import let_others_run, let_others_run_if_spent, turns_of_loop

from .asgi import Application, AsgiConversation, ClientDisconnected, Event, Scope
from .databases import databases_here, holds_database

__all__ = ["checks_origin", "recognise", "unserved"]

HANDLERS = {name: name.replace(".", "_") for name in ("websocket.connect", "websocket.receive", "websocket.disconnect")}
new_future: Any = asyncio.Future  # loop.create_future() takes longer
GROUP = ".group."  # precedes the name of a group in that of the broker's channel
FEW = 8  # events between two looks at the clock

Send = Callable[[Event], Awaitable[None]]


class Mailbox(Protocol):
    """The messages of a channel layer that wait for a consumer."""

    items: Any  # as many as may be taken
    closed: bool

    def tell(self, waiter: Run) -> None:
        """Have `waiter` go on whenever there is something."""

    def take(self) -> Event:
        """Return the next one."""


def unwrapped(send: Send) -> Send:
    """Return what Channels' session middleware calls for each event of a WebSocket, without a change."""
    while True:
        wrapper: Any = getattr(send, "__self__", None)
        if type(wrapper) is not InstanceSessionWrapper:
            return send
        send = wrapper.real_send


# --- which consumers --------------------------------------------------------------------------------------------------


class Recognised:
    """Stands for what a consumer's `as_asgi()` has returned, and has our conversations run the consumer."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self.consumer_class: type[Any] = application.consumer_class
        self.consumer_initkwargs: dict[str, Any] = application.consumer_initkwargs
        functools.update_wrapper(self, application)

    async def __call__(
        self, scope: Scope, receive: Callable[[], Awaitable[Event]], send: Callable[[Event], Awaitable[None]]
    ) -> None:
        """Serve one connection."""
        conversation = owner.get()
        run: Run | None = None
        if isinstance(conversation, AsgiConversation):  # else another server calls this, or a test
            conversation.know(scope)
            name_user(scope)
            conversation.forgiving = True
            kind = run_of(self.consumer_class)
            if kind is not None and receive == conversation.receive:  # else a middleware wants to see all events
                run = conversation.driving = kind(conversation, self.consumer_class(**self.consumer_initkwargs))
        if run is None:
            await self._application(scope, receive, send)
        else:
            await run.run(scope, send)


def name_user(scope: Scope) -> None:
    """Have the scope name Django's user, which has been loaded, as Channels' middleware does."""
    user = scope.get("user")
    if type(user) is SimpleLazyObject:
        from channels.auth import UserLazyObject  # it imports models, which must be installed

        scope["user"] = UserLazyObject()
        scope["user"]._wrapped = user._wrapped


def run_of(consumer_class: type[Any]) -> type[Run] | None:
    """Return what runs the consumers of a class; None for Channels itself."""
    if consumer_class.__call__ is not AsyncConsumer.__call__:
        return None
    if not issubclass(consumer_class, SyncConsumer):
        return AsyncRun
    own = getattr_static(consumer_class, "dispatch") is getattr_static(SyncConsumer, "dispatch")
    return SyncRun if own else None


def recognise(application: Application) -> Application:
    """Return an application in whose place consumers are recognised, also behind Channels' routers and middleware.

    What leads to a consumer, the route of a `URLRouter` or the attribute of a middleware, leads to its `Recognised`
    from now on, which is the consumer's own application wherever another server calls it. Raises ImproperlyConfigured
    for a consumer that is listed without `as_asgi()`.
    """
    compat.verify("channels")
    if hasattr(application, "consumer_class"):
        return application if isinstance(application, Recognised) else Recognised(application)
    seen: set[int] = set()
    waiting: list[Any] = [application]
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, URLRouter):
            for route in found.routes:
                check_route(route)
                route.callback = replacement(route.callback, waiting)
        elif isinstance(found, ProtocolTypeRouter):
            mapping = found.application_mapping
            if "websocket" in mapping:
                mapping["websocket"] = replacement(mapping["websocket"], waiting)
        else:
            for part, put in parts_of(found):
                if is_asgi(part) and (new := replacement(part, waiting)) is not part:
                    put(new)
    return application


def parts_of(found: Any) -> Iterator[tuple[Any, Callable[[Any], object]]]:
    """Yield what an application refers to, each with a function that puts something else in its place, if possible."""
    if isinstance(found, functools.partial):
        for part in (found.func, *found.args, *found.keywords.values()):
            yield part, bool
    slots = [name for kind in type(found).__mro__ for name in getattr(kind, "__slots__", ()) if name[:2] != "__"]
    for name in (*getattr(found, "__dict__", ()), *slots):
        part = getattr(found, name, None)
        yield part, functools.partial(setattr, found, name)
        if isinstance(part, (list, tuple, dict)):
            for each in part.values() if isinstance(part, dict) else part:
                yield each, bool
    for cell in getattr(found, "__closure__", None) or ():
        with suppress(ValueError):  # an empty one
            yield cell.cell_contents, functools.partial(setattr, cell, "cell_contents")


def checks_origin(application: Any) -> bool:
    """Whether an application checks the origin of each page itself, before all else but middleware."""
    while application is not None:
        if isinstance(application, OriginValidator):
            return True
        if isinstance(application, ProtocolTypeRouter):
            application = application.application_mapping.get("websocket")
        else:
            application = getattr(application, "inner", None)
    return False


def unserved(application: Any) -> Iterator[str]:
    """Yield a sentence for each part of an application that this server does not run."""
    mapping = application.application_mapping if isinstance(application, ProtocolTypeRouter) else {}
    if isinstance(mapping.get("http"), URLRouter):
        yield (
            "The ASGI application has a URLRouter for HTTP, which this server does not call: here, Django's WSGI "
            "application serves the pages. Turn its routes into views in ROOT_URLCONF; they may be async def."
        )
    if "channel" in mapping:
        yield (
            "The ASGI application has channels for workers (manage.py runworker), which this server does not run. Run "
            "them with Channels and a channel layer that keeps messages, such as channels_redis.core, or use a task "
            "queue such as Celery."
        )


def replacement(application: Any, waiting: list[Any]) -> Any:
    """Return what takes the place of an application; one that may lead to consumers is added to those `waiting`."""
    if hasattr(application, "consumer_class"):
        return recognise(application)
    waiting.append(application)
    return application


def check_route(route: Any) -> None:
    """Raise ImproperlyConfigured for a route to a consumer's class."""
    mistake = without_as_asgi(route.callback)
    if mistake is not None:
        raise ImproperlyConfigured(mistake)


# --- running them -----------------------------------------------------------------------------------------------------


class Run:
    """One consumer and its client; `switch()` has it go on when the connection or the mailbox has something."""

    __slots__ = ("_client_next", "_consumer", "_conversation", "_mailbox", "_told")

    def __init__(self, conversation: AsgiConversation, consumer: Any) -> None:
        self._conversation = conversation
        self._consumer: Any = consumer
        self._mailbox: Mailbox | None = None
        self._client_next = True  # the client and the channel layer take turns
        self._told = False  # whether the connection tells this when there is something

    @property
    def works_for(self) -> tuple[str, str]:
        """See `culprits.Worker`."""
        return self._conversation.works_for[0], f"the consumer {name_of(type(self._consumer))}"

    async def run(self, scope: Scope, send: Send) -> None:
        """Serve the client until the end. Raises what a handler raises."""
        raise NotImplementedError

    @property
    def consumer(self) -> object:
        """See `Driving.consumer`."""
        return self._consumer

    @property
    def groups(self) -> list[str]:
        """See `Driving.groups`."""
        return [name.partition(GROUP)[2] for name in getattr(self._mailbox, "groups", ()) if GROUP in name]

    @property
    def frames(self) -> list[FrameType]:
        """See `Driving.frames`."""
        return []

    def switch(self, *args: object) -> None:
        """Have the handlers called for what has come. Called by the connection and by the mailbox."""
        raise NotImplementedError

    async def _prepare(self, scope: Scope) -> None:
        """Do what a consumer's `__call__` begins with."""
        consumer = self._consumer
        consumer.scope = scope
        layer = consumer.channel_layer = get_channel_layer(consumer.channel_layer_alias)
        if layer is None:
            return
        consumer.channel_name = await layer.new_channel()
        consumer.channel_receive = functools.partial(layer.receive, consumer.channel_name)
        own = getattr(layer, "mailbox", None)
        self._mailbox = Fetching(consumer.channel_receive) if own is None else own(consumer.channel_name)

    def _next(self) -> Event | None:
        """Return the next event, of the client or of the channel layer; None if there is none yet."""
        mailbox = self._mailbox
        if self._client_next or mailbox is None or not mailbox.items:
            event = self._conversation.taken()
            if event is not None:
                self._client_next = False
                return event
        self._client_next = True
        if mailbox is not None:
            if mailbox.items:
                return mailbox.take()
            if mailbox.closed:
                raise closed_error()
        return None

    def _handler(self, event: Event) -> Any:
        name = HANDLERS.get(event.get("type", "")) or get_handler_name(event)
        handler = getattr(self._consumer, name, None)
        if handler is None:
            raise ValueError(f"No handler for message type {event['type']}")
        return handler

    def _something(self) -> bool:
        """Whether `_next` has an event."""
        mailbox = self._mailbox
        return self._conversation.has_event or (mailbox is not None and bool(mailbox.items or mailbox.closed))

    def _tell(self) -> None:
        """Be told of what comes from the client."""
        self._told = self._conversation.websocket.connection is not None
        self._conversation.tell(self)

    async def _end(self) -> None:
        if isinstance(self._mailbox, Fetching):
            await self._mailbox.end()


class Fetching:
    """The messages of a channel layer that is not this package's, of which one is fetched ahead."""

    __slots__ = ("_loop", "_receive", "_task", "_waiter", "closed", "items")

    def __init__(self, receive: Callable[[], Awaitable[Event]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self.items: list[asyncio.Task[Event]] = []
        self.closed = False
        self._waiter: Run | None = None
        self._fetch()

    def _fetch(self) -> None:
        self._task = self._loop.create_task(self._fetched())
        self._task.add_done_callback(self._on_fetched)

    async def _fetched(self) -> Event:
        return await self._receive()

    def _on_fetched(self, task: asyncio.Task[Event]) -> None:
        if not task.cancelled():
            self.items.append(task)
            if self._waiter is not None:
                self._waiter.switch()

    def tell(self, waiter: Run) -> None:
        """See `Mailbox.tell`."""
        self._waiter = waiter
        if self.items:
            waiter.switch()

    def take(self) -> Event:
        """Return the message that has come. Raises what the channel layer raises."""
        task = self.items.pop()
        self._fetch()
        return task.result()

    async def end(self) -> None:
        """Fetch no more."""
        self._task.cancel()
        await asyncio.wait((self._task,))
        if not self._task.cancelled():
            self._task.exception()


class AsyncRun(Run):
    """Awaits the handlers of a consumer in the conversation's task."""

    __slots__ = ("_future",)

    def __init__(self, conversation: AsgiConversation, consumer: Any) -> None:
        super().__init__(conversation, consumer)
        self._future: asyncio.Future[None] | None = None  # as long as there is nothing to handle

    def switch(self, *args: object) -> None:
        """See `Run.switch`."""
        future = self._future
        if future is not None:
            self._future = None
            if not future.done():
                future.set_result(None)

    async def run(self, scope: Scope, send: Send) -> None:
        """See `Run.run`."""
        await self._prepare(scope)
        conversation, consumer = self._conversation, self._consumer
        consumer.base_send = conversation.send if unwrapped(send) == conversation.send else send
        own_dispatch = type(consumer).dispatch is not AsyncConsumer.dispatch
        loop = asyncio.get_running_loop()
        shared = shared_of_loop()
        count = 0
        if self._mailbox is not None:
            self._mailbox.tell(self)
        try:
            while True:
                event = self._next()
                if event is None:
                    if conversation.impatient:  # a handler has caught its cancellation
                        raise asyncio.CancelledError
                    if not self._told:
                        self._tell()
                    self._future = future = new_future(loop=loop)
                    await future
                    continue
                try:
                    if own_dispatch:
                        await consumer.dispatch(event)
                    else:
                        await self._handler(event)(event)
                except ClientDisconnected:  # which the next event says, too
                    if self._conversation.websocket.connection is None:
                        raise
                if in_child():
                    end_child()
                if shared.overdue:
                    shared.send_all()
                count += 1
                if not count % FEW and turns_of_loop().spent():
                    await asyncio.sleep(0)
        except StopConsumer:
            pass
        finally:
            conversation.untell(self)
            await self._end()


class SyncRun(Run):
    """Calls the handlers of a consumer in greenlets that are lent for that: an idle client needs none."""

    __slots__ = ("_adopts", "_busy", "_context", "_ended", "_greenlet", "_hub", "_lending", "_loop", "_outcome")

    def __init__(self, conversation: AsgiConversation, consumer: Any) -> None:
        super().__init__(conversation, consumer)
        self._loop: Any = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._outcome: BaseException | None = None
        self._context = contextvars.Context()
        self._greenlet: Any = None  # in which a handler runs
        self._busy = False
        self._lending = lending_of_loop()
        self._hub = get_hub()
        self._adopts = conversation.shares_databases

    async def run(self, scope: Scope, send: Send) -> None:
        """See `Run.run`."""
        await self._prepare(scope)
        direct = unwrapped(send) == self._conversation.send
        self._consumer.base_send = self.send if direct else async_to_sync(send)
        self._context = contextvars.copy_context()
        if self._mailbox is not None:
            self._mailbox.tell(self)
        self.switch()
        try:
            while not self._ended.done():
                try:
                    await asyncio.shield(self._ended)
                except asyncio.CancelledError:
                    self._interrupt()
            outcome, self._outcome = self._outcome, None
            if outcome is not None and not isinstance(outcome, StopConsumer):
                raise outcome
        finally:
            outcome = None  # its traceback has this frame
            self._conversation.untell(self)
            await self._end()

    @property
    def frames(self) -> list[FrameType]:
        """See `Driving.frames`."""
        innermost = getattr(self._greenlet, "gr_frame", None)
        return [frame for frame, _ in traceback.walk_stack(innermost)][::-1] if innermost else []

    def _interrupt(self) -> None:
        """End as soon as the handler at work does. One that is about to accept is told at once."""
        if self._greenlet is None:
            self._finish(asyncio.CancelledError())
        elif not self._conversation.decided:
            self._hub.loop.run_callback(self._throw, self._greenlet)

    def _throw(self, greenlet: Any) -> None:
        """End the handler at work, in the hub, if it has not ended meanwhile."""
        if self._greenlet is greenlet:
            greenlet.throw(HandshakeFailed("The request is over"))

    def _finish(self, outcome: BaseException) -> None:
        if not self._ended.done():
            self._outcome = outcome
            self._ended.set_result(None)

    def switch(self, *args: object) -> None:
        """See `Run.switch`."""
        if not self._busy:
            self._busy = True
            self._lending.lend(self._work)

    def _work(self) -> None:
        """Handle all that is there, in a greenlet that is lent for it."""
        if self._ended.done():
            return
        current: Any = getcurrent()
        self._greenlet = current
        databases = current.notes
        if databases is None:
            databases = current.notes = databases_here()
        if self._adopts:
            self._conversation.adopt()
        outcome = self._context.run(self._handle_all)
        self._greenlet = None
        gives_back = databases is None or bool(databases)  # which is about to be emptied
        if gives_back:
            self._adopts = self._conversation.give_back() or self._conversation.shares_databases
        self._busy = False
        if outcome is not None:
            self._finish(outcome)
            del outcome
        elif gives_back and self._something():
            self.switch()  # it came as the databases were given back

    def _handle_all(self) -> BaseException | None:
        """Handle what is there. Return what a handler raises, StopConsumer if it has come to the end."""
        count = 0
        try:
            while (event := self._next()) is not None:
                try:
                    self._handler(event)(event)
                except ClientDisconnected:  # which the next event says, too
                    if self._conversation.websocket.connection is None:
                        raise
                if in_child():
                    end_child()
                count += 1
                if not count % FEW and turns_of_loop().spent():
                    let_others_run()
        except BaseException as error:  # whatever it is, it is for the conversation
            if in_child():
                end_child(error)
            return error
        if self._conversation.impatient:  # a handler has gone on although the client had left
            return asyncio.CancelledError()
        if not self._told:
            self._tell()
        return None

    def send(self, event: Event) -> None:
        """Send an event; the consumer's `base_send`."""
        conversation = self._conversation
        if event["type"] == "websocket.accept" or get_hub() is not self._hub:
            if not conversation.decided:
                conversation.check_no_atomic()
            with self._away():  # middleware may take its time with the response
                from_greenlet(self._loop, conversation.send(event))
            return
        connection = conversation.put(event)
        if connection is None:  # it may be a consumer that sends without end
            let_others_run_if_spent()
        elif connection.crowded:
            self._wait_until_drained(connection)

    def _wait_until_drained(self, connection: Connection) -> None:
        """Wait until the client has read, without what others may need meanwhile."""
        with self._away():
            try:
                while connection.crowded:
                    drained, before = connection.until_drained()
                    if not drained.wait(connection.limits.send_timeout):
                        connection.judge_reader(before)
                    connection.check_not_closing()
            except WebSocketError as error:
                self._conversation.disconnected(error)

    def _away(self) -> AbstractContextManager[None]:
        """Let others work meanwhile, unless this greenlet has a database, of which there may be few."""
        return nullcontext() if holds_database() else away()
