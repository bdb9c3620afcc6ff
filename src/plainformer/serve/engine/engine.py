"""`Engine`: models that answer many callers at once, in this process.

    with Engine({"smol": load("smollm2")}) as engine:
        request = engine.generate("smol", "Once upon a time", {"max_new_tokens": 20})
        for event in request:
            print(event.text, end="")

An answer is what the model's task gives for the same call by itself: whatever else runs, whoever else asks, and whether its
beginning was read before. Requests that are drawn have a seed, which their outcome tells.
"""

from __future__ import annotations

import atexit
import itertools
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

from plainformer.config.values import check_number, check_whole
from plainformer.errors import InputError, PlainformerError, UsageError, a_type, did_you_mean, opt
from plainformer.generation.options import DEFAULT_NEW_TOKENS, TOKENS
from plainformer.plan.machine import available_memory
from plainformer.serve.engine.capabilities import Capabilities, capabilities
from plainformer.serve.engine.counters import Counters, Observation
from plainformer.serve.engine.errors import Draining, EngineDied, QueueFull
from plainformer.serve.engine.jobs import CallJob, Job
from plainformer.serve.engine.memory import BLOCK, Memory, blocks_for
from plainformer.serve.engine.micro import Called, Reading
from plainformer.serve.engine.options import EngineOptions
from plainformer.serve.engine.preparing import Preparing
from plainformer.serve.engine.request import Request
from plainformer.serve.engine.rows import Batched
from plainformer.serve.engine.scheduler import Scheduler
from plainformer.serve.engine.writing import Stepped, context_of, is_ids
from plainformer.tasks import TASKS, task_info
from plainformer.tasks.base import Task
from plainformer.tasks.media import AudioTask
from plainformer.tasks.writing.base import GeneratingTask
from plainformer.tasks.writing.text_generation import TextGeneration
from plainformer.tasks.writing.writer import WritingTask

MOST_ANSWERS = 128
_MEMORY_SHARE = 4  # a quarter of what is free, where nobody says


class Ask(NamedTuple):
    """What every job begins with."""

    request: Request
    number: int
    deadline: float


def _check_models(models: object, options: object) -> None:
    if not isinstance(models, Mapping):
        raise UsageError(f"an engine's models are {a_type(models)}", 'give tasks by name: {"name": load(REF)}')
    if not models:
        raise UsageError("an engine without models answers nothing", 'give some: {"name": load(REF)}')
    for name, task in models.items():
        if not isinstance(task, Task):
            raise UsageError(f"model {name!r} is {a_type(task)}", f'load it first: {{"{name}": load(REF)}}')
    if options is not None and not isinstance(options, EngineOptions):
        raise UsageError(f"an engine's options are {a_type(options)}", "give EngineOptions(...)")


def _most_tokens(inputs: Any, options: Any, longest: int) -> int:
    """Return how many tokens a row of some inputs can have: a text has no more than bytes, and a few around it."""
    new, texts = options.new_token_limit, [inputs] if isinstance(inputs, str) else inputs
    if new is None or not all(isinstance(text, str) for text in texts):
        return longest
    return min(longest, max((len(text.encode("utf-8", "replace")) for text in texts), default=0) + BLOCK + int(new))


class Engine:
    """Models that answer many callers at once.

    Args:
        models: loaded tasks by the names that requests give.
    Attributes:
        tasks, options: as given. models: what each can do.
        counters: totals, and observers of each number as it is counted.
    """

    def __init__(self, models: Mapping[str, Task], options: EngineOptions | None = None) -> None:
        _check_models(models, options)
        self.tasks, self.options = dict(models), options or EngineOptions()
        memories = self._memories()
        self.models: dict[str, Capabilities] = {
            name: capabilities(
                name, task, self.options.prefix_cache, memories[name].total * BLOCK if name in memories else 0
            )
            for name, task in self.tasks.items()
        }
        self.counts = Counters()
        self._scheduler = Scheduler(self.options, memories, self.counts)
        self._preparing = Preparing(lambda job, error: self._scheduler.post("ready", job, error))
        self._thread = threading.Thread(target=self._scheduler.run, name="plainformer-engine", daemon=True)
        self._numbers = itertools.count()
        self._requests: dict[str, Request] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._built: dict[tuple[str, str], Task] = {}

    def _memories(self) -> dict[str, Memory]:
        """Divide the memory for keys and values among the models that have any."""
        writers = {name: task for name, task in self.tasks.items() if isinstance(task, GeneratingTask)}
        whole = self.options.kv_memory_bytes
        if writers:
            free = available_memory()
            whole = free // _MEMORY_SHARE if whole is None else whole
            if whole > free:
                what = f"{whole:,} bytes for keys and values are more than the {free:,} that are free here"
                raise UsageError(what, f"give less for {opt('kv_memory_bytes')}")
        return {
            name: Memory(task, (whole or 0) // len(writers), self.options.prefix_cache)
            for name, task in writers.items()
        }

    # ---- life -----------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start the thread that computes; an engine is started once."""
        if self._thread.ident is not None or self.draining:
            raise UsageError("this engine was started already", "make another Engine(models)")
        atexit.register(self.close)  # Python must not be taken apart around a thread that computes
        for task in self.tasks.values():
            if task.needs_tokenizer:
                task.tokenizer.in_pool = True
        self._thread.start()
        return self

    def warm(self) -> dict[str, PlainformerError]:
        """Write a few tokens with each model, so that all is compiled before the first caller comes; it waits for that.

        Kernels that are not on disk yet are compiled here, some 10 s once on a machine: an answer is of one kind of arithmetic
        from the first on. Returns the errors of the models that could not, by name.
        """
        failed = {}
        before = os.environ.get("PLAINFORMER_KERNELS")
        os.environ["PLAINFORMER_KERNELS"] = "wait"
        try:
            for name, task in self.tasks.items():
                if isinstance(task, WritingTask):
                    first = [0, 0] if isinstance(task, TextGeneration) else "a"
                    try:
                        self.generate(name, first, {"max_new_tokens": 2, "eos_ids": []}).result()
                    except PlainformerError as error:
                        failed[name] = error
        finally:
            os.environ.pop("PLAINFORMER_KERNELS")
            if before is not None:
                os.environ["PLAINFORMER_KERNELS"] = before
        return failed

    def drain(self) -> None:
        """Take no more requests; those that wait end with `Draining`, those that run go on."""
        self._scheduler.draining = True
        self._scheduler.post("drain")

    def close(self, drain_seconds: float = 0.0) -> None:
        """End: `drain`, wait so long for what runs, and end the rest ("drain"). Waits for the thread."""
        check_number("drain_seconds", drain_seconds, "[0, inf)")
        self.drain()
        until = time.monotonic() + drain_seconds
        while self._thread.is_alive() and self._scheduler.jobs and time.monotonic() < until:
            time.sleep(0.02)
        self._scheduler.post("stop")
        self._preparing.close()
        if self._thread.is_alive():
            self._thread.join()
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether the thread that computes runs."""
        return self._thread.is_alive() and self._scheduler.died is None

    @property
    def draining(self) -> bool:
        return self._scheduler.draining

    @property
    def idle_seconds(self) -> float:
        """Seconds since the computing thread last looked at its mailbox; 0 while it has nothing to do."""
        return 0.0 if self._scheduler.sleeps else time.monotonic() - self._scheduler.looked

    @property
    def on_death(self) -> list[Callable[[EngineDied], object]]:
        """Functions that are told if the computing thread dies, in that thread."""
        return self._scheduler.on_death

    @property
    def observers(self) -> list[Callable[[Observation], None]]:
        """Functions that are told of each number that is counted, in the computing thread."""
        return self.counts.observers

    # ---- requests -------------------------------------------------------------------------------------------------

    def generate(
        self,
        model: str,
        inputs: Any,
        options: Mapping[str, Any] | Any = {},  # noqa: B006 - never written to
        *,
        n: int = 1,
        logprobs: int | None = None,
        client: str = "",
        request_id: str | None = None,
        timeout: float | None = None,
        task: Task | None = None,
    ) -> Request:
        """Ask for written answers to one input, which come in events.

        Args:
            inputs: a text, the messages of a chat, or the ids of a prompt's tokens.
            options: of the task, by name or made. Without a limit on new tokens: as many as there is room for, at most
                `default_max_tokens`.
            n: answers. The likeliest one is computed once; drawn ones are the copies of `num_return_sequences`.
            logprobs: tell each token's log-probability in the model's own distribution, and as many of the likeliest tokens.
            client: whose request it is: between clients, time is divided evenly.
            timeout: seconds, in place of the engine's; the answer ends there, with the reason "time".
            task: another task on the model's weights.
        Raises:
            UsageError, InputError: what is wrong with the call. QueueFull, Draining, EngineDied.
        """
        owner = task or self._task(model)
        if not isinstance(owner, WritingTask):
            raise UsageError(f"{model!r} is for {owner.name}, which writes no text piece by piece", "use run()")
        check_whole("n", n, 1, MOST_ANSWERS)
        if logprobs is not None:
            check_whole("logprobs", logprobs, 0)
        made = owner.make_options(options) if isinstance(options, Mapping) else options
        answers = n
        if n > 1 and (made.do_sample or made.num_beams > 1):
            made = made.changed(num_return_sequences=n)
        answers = max(n, made.num_return_sequences, made.num_alternatives)
        if is_ids(inputs) and not isinstance(owner, TextGeneration):
            raise InputError(f"a list of ids is not an input for {owner.name}", f"give {owner.reads()}")
        ask = self._request(model, client, "generate", request_id, timeout)
        return self._write(ask, owner, inputs, made, answers, logprobs, self.options.default_max_tokens)

    def _write(self, ask: Ask, task: WritingTask[Any], item: Any, options: Any, *more: Any) -> Request:
        """Ask for written answers: in the batch where they can be, else by the library's own search."""
        memory = self._scheduler.memories[ask.request.model]
        if memory.ragged is not None and joins_a_batch(task, options):
            return self._ask(
                Batched(
                    *ask,
                    task,
                    item,
                    options,
                    *more,
                    memory=memory,
                    reuse=self.options.prefix_cache,
                )
            )
        return self._ask(Stepped(*ask, task, item, options, *more))

    def run(
        self,
        model: str,
        inputs: Any,
        options: Mapping[str, Any] | Any = {},  # noqa: B006 - never written to
        *,
        task: Task | str | None = None,
        client: str = "",
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Request:
        """Ask a task for what its own call gives: its outcome's `result` is one for an input, a list for a list.

        Args:
            task: another task on the model's weights, or the name of one. The others: see `generate`.
        """
        owner = task if isinstance(task, Task) else self._task(model, task)
        made = owner.make_options(options) if isinstance(options, Mapping) else options
        ask = self._request(model, client, "run", request_id, timeout)
        if not isinstance(owner, GeneratingTask | AudioTask):
            return self._ask(Reading(*ask, owner, inputs, made))
        if isinstance(owner, WritingTask) and owner.is_one(inputs) and made.on_error == "stop":
            ask.request.drop()
            answers = max(made.num_return_sequences, made.num_alternatives)
            return self._write(ask, owner, inputs, made, answers, None, DEFAULT_NEW_TOKENS)
        job = Called(*ask, lambda: owner.answer(inputs, made), self._scheduler.turns)
        if isinstance(owner, GeneratingTask):
            memory = self._scheduler.memories[model]
            job.rows = min(made.batch_size * made.copies, self.options.max_rows)
            longest = context_of(owner) or self.options.default_max_tokens
            job.blocks = min(memory.total, job.rows * blocks_for(_most_tokens(inputs, made, longest)))
        return self._ask(job)

    def exclusive(
        self,
        call: Callable[[], Any],
        *,
        client: str = "",
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Request:
        """Ask for a call that nothing else computes beside: one that may change a model meanwhile, as `what_if` does."""
        ask = self._request("", client, "exclusive", request_id, timeout)
        return self._ask(CallJob(*ask, call, self._scheduler.turns))

    def cancel(self, request_id: str, why: str = "cancelled") -> bool:
        """End a request by its id; return whether there was one."""
        request = self._requests.get(request_id)
        if request is None or request.done:
            return False
        request.cancel(why)
        return True

    def _task(self, model: str, name: str | None = None) -> Task:
        """Return the task of a model, or another one on its weights."""
        if model not in self.tasks:
            raise UsageError(f"there is no model {model!r} here", did_you_mean(str(model), self.tasks))
        own = self.tasks[model]
        if name is None or task_info(name).name == own.name:
            return own
        info = task_info(name)
        if info.name not in self.models[model].tasks:
            known = ", ".join(self.models[model].tasks)
            raise UsageError(f"{model!r} is for {own.name}, and cannot be asked for {info.name}", f"it takes {known}")
        return self._built_on(model, own, info.name)

    def _built_on(self, model: str, own: Task, name: str) -> Task:
        """Return another task on a model's weights, made once."""
        with self._lock:
            if (model, name) not in self._built:
                self._built[model, name] = other_task(own, name)
            return self._built[model, name]

    def _request(self, model: str, client: str, kind: str, request_id: str | None, timeout: float | None) -> Ask:
        self._check_open()
        if timeout is not None:
            check_number("timeout", timeout, "(0, inf)")
        name = request_id or uuid.uuid4().hex
        request = Request(name, model, client, kind, lambda: self._scheduler.post("notice"))
        return Ask(request, next(self._numbers), request.created + (timeout or self.options.timeout))

    def _check_open(self) -> None:
        if os.getpid() != self._process:
            raise UsageError(
                "this engine was started by another process", "make one here: threads do not survive a fork"
            )
        if self._scheduler.died is not None:
            raise self._scheduler.died
        if self._scheduler.draining:
            raise Draining.now()
        if not self._thread.is_alive():
            raise UsageError("this engine has not been started", "call start(), or use it in a with statement")

    def _ask(self, job: Job) -> Request:
        with self._lock:
            self._requests = {name: one for name, one in self._requests.items() if not one.done}
            waiting = sum(one.state in ("preparing", "waiting") for one in self._requests.values())
            if job.request.id in self._requests:
                raise UsageError(f"{opt('request_id', job.request.id)} is in use", "give each request its own")
            if waiting < self.options.max_queue:
                self._requests[job.request.id] = job.request
        if waiting >= self.options.max_queue:
            self.counts("rejected", 1, job.request.model, "queue_full")
            raise QueueFull.of(waiting)
        self.counts("requests", 1, job.request.model, job.request.kind)
        self._scheduler.post("new", job)
        self._preparing.add(job)
        return job.request

    # ---- numbers --------------------------------------------------------------------------------------------------

    def gauges(self) -> dict[str, int]:
        """Return what is going on now."""
        states = [request.state for request in list(self._requests.values())]
        memories = self._scheduler.memories.values()
        return {
            "requests_running": sum(state in ("prefill", "running") for state in states),
            "requests_waiting": sum(state in ("preparing", "waiting") for state in states),
            "requests_paused": states.count("paused"),
            "rows_running": sum(len(batch.rows) for batch in self._scheduler.batches.values()),
            "kv_blocks_used": sum(memory.used for memory in memories),
            "kv_blocks_total": sum(memory.total for memory in memories),
            "prefix_blocks": sum(memory.prefix_blocks for memory in memories),
        }

    def counters(self) -> dict[tuple[str, str, str], float]:
        """Return what has been counted: (name, model, label) → total."""
        return dict(self.counts.totals)


def joins_a_batch(task: Task, options: Any) -> bool:
    """Whether an answer with these options is written together with other requests', token by token."""
    return (
        isinstance(task, TextGeneration)
        and options.mode in TOKENS
        and options.guidance_scale is None
        and options.dola_layers is None
        and options.num_alternatives == 1
        and options.cache is None
        and options.cache_kind == "full"
        and options.prefill_chunk is None
    )


def other_task(task: Task, name: str) -> Task:
    """Return another task on the same model, tokenizer and checkpoint."""
    from importlib import import_module

    info = TASKS[name]
    kind = getattr(import_module(f"plainformer.tasks.{info.module}"), info.class_name)
    tokenizer = task.tokenizer if task.needs_tokenizer else None
    made: Task = kind(name, task.model, tokenizer, task.checkpoint)
    return made
