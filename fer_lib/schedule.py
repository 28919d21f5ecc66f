"""Which run is trained when and where: parents before children, several at a time, the longest chains first; a worker that dies costs one run.

    run, = complete([spec], data, Store("results/reduced"), workers=2)
"""
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable

import torch

from .dataset import Dataset
from .models import forward_flops
from .runs import COMPILE, Measure, Run, RunSpec, Store, execute

log = logging.getLogger(__name__)


def complete(specs: Iterable[RunSpec], data: Dataset, store: Store, measures: dict[str, Measure] | None = None, workers: int = 1,
             device: str | None = None) -> list[Run]:
    """The runs of `specs` in their order, training only what the store lacks, parents first.

    measures    {name: top-level function}: computed when a run ends and stored with it; a finished run that lacks one is loaded
                (or, without weights, trained again) and measured then.
    workers     processes at a time, each with an equal share of the cores' threads; 1 trains in this process.
    device      "cpu", "cuda", ...; None takes a GPU where there is one.
    Raises ValueError when a spec belongs to other data, and whatever stopped a run, once every other run has ended.
    """
    specs = list(specs)
    schedule = Schedule([[(spec, measures or {}) for spec in specs]], data, store, workers, device, executor="here" if workers == 1 else "processes")
    schedule.run()
    for key, error in schedule.failed.items():
        error.add_note(f"It stopped {key}.")
        raise error
    return [store.get(spec) for spec in specs]


@dataclass
class Job:
    """A run that is to be trained, or only measured."""

    spec: RunSpec
    measures: dict[str, Measure]
    group: int
    parents: set[str] = field(default_factory=set)  # keys of the jobs it waits for
    chain: float = 0.0                              # what it costs with the longest chain of those that wait for it
    tries: int = 0


class Schedule:
    """What a store lacks of some runs, and its execution; `open` are the keys that have neither ended nor failed.

    groups      lists of (spec, measures) in order of worth: a group's runs begin before those of the next, the longest chain first
    deadline    time.time() after which nothing is begun and what is being trained stops at its checkpoint
    executor    one of EXECUTORS; `address` is that of a running Ray cluster ("": this machine alone)
    The others as in `complete`; of a cluster `workers` is how many runs share a GPU, and a `device` that is given is waited for.
    """

    def __init__(self, groups: list[list[tuple[RunSpec, dict[str, Measure]]]], data: Dataset, store: Store, workers: int = 1,
                 device: str | None = None, deadline: float | None = None, executor: str = "processes", address: str = ""):
        if executor not in EXECUTORS:
            raise ValueError(f"Unknown executor {executor!r}: use one of {', '.join(EXECUTORS)}.")
        if address and executor != "ray":
            raise ValueError(f"The address {address} is that of a Ray cluster: give --executor ray with it.")
        if (device or "").startswith("cuda") and executor != "ray" and not torch.cuda.is_available():
            raise ValueError(f"There is no GPU here that torch can use: leave the device {device} out.")
        specs = [spec for group in groups for spec, _ in group]
        if wrong := [spec for spec in specs if spec.data != data.fingerprint]:
            raise ValueError(f"{len(wrong)} specs were made for data {wrong[0].data}, not for {data.fingerprint}: build them from this data set.")
        self.data, self.store, self.workers, self.deadline = data, store, workers, deadline
        self.asked, self.executor, self.address = device, executor, address
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.jobs, self.failed, self.stopped = _jobs(groups, store), {}, threading.Event()
        self.open, self.error = set(self.jobs), None
        self.ended: Callable[[], object] = lambda: None  # called after each run that ended

    def run(self) -> None:
        """Execute all of it. A run's error is kept in `failed` and costs only the runs that wait for it; what stops the schedule itself, as a
        cluster that is not there, is raised and kept in `error`."""
        running: dict[Future, Job] = {}
        pool = None
        try:
            pool = EXECUTORS[self.executor if self.jobs else "here"](self)
            self._run(pool, running)
        except BaseException as error:
            self.error = error
            raise
        finally:
            try:
                if pool is not None:
                    pool.close(kill=bool(running))
            finally:
                self.open.clear()

    def _run(self, pool, running: dict[Future, Job]) -> None:
        waiting, began, waits = dict(self.jobs), time.perf_counter(), 0
        while not self.stopped.is_set():
            ready = sorted((job for job in waiting.values() if not job.parents & self.open), key=lambda job: (job.group, -job.chain))
            for job in ready[: max(0, pool.slots - len(running))]:
                job.tries += 1
                running[pool.submit(job)] = waiting.pop(job.spec.key)
            if not running and not ready:
                break
            if not running:  # a cluster without a node at this moment
                if self.deadline is not None and time.time() > self.deadline:
                    break
                waits += 1
                if waits == 20:
                    log.warning("The cluster has no free node: waiting.")
                time.sleep(0.5)
                continue
            waits = 0
            for future in wait(running, 0.5, FIRST_COMPLETED)[0]:
                job = running.pop(future)
                key, error = job.spec.key, future.exception()
                if pool.freed(future) and job.tries < pool.tries:
                    log.warning("The worker of %s died: it is begun again from its checkpoint.", key)
                    waiting[key] = job
                    continue
                self.open.discard(key)
                if error is not None:
                    self.failed[key] = error
                    log.warning("%s stopped: %s: %s", key, type(error).__name__, error)
                elif future.result():
                    log.info("run %d of %d ended: %s (%.1f min so far)", len(self.jobs) - len(self.open), len(self.jobs), key,
                             (time.perf_counter() - began) / 60)
                    self.ended()
                if error is not None and not self.store.has_weights(job.spec) or error is None and not future.result():
                    for lost in _waiting_for(key, waiting):
                        self.open.discard(lost)
                        del waiting[lost]
                        if error is not None:
                            log.warning("%s is not begun: it needs %s.", lost, key)

    def stop(self) -> None:
        """End it, from another thread: workers are stopped, and what they train stays at its last checkpoint."""
        self.stopped.set()


def _jobs(groups, store: Store) -> dict[str, Job]:
    wanted: dict[str, dict[str, Measure]] = {}
    for spec, measures in (one for group in groups for one in group):
        wanted.setdefault(spec.key, {}).update(measures)
    jobs: dict[str, Job] = {}

    def add(spec: RunSpec, group: int, weights: bool) -> None:
        run, measures = store.get(spec), wanted.get(spec.key, {})
        trained = run is not None and run.has_weights
        if spec.key in jobs or trained >= weights and run is not None and all(run.measured(name) for name in measures):
            return
        for parent in spec.parents if not trained else ():
            add(parent, group, weights=True)
        jobs[spec.key] = Job(spec, measures, group, {parent.key for parent in spec.parents if not trained and parent.key in jobs})

    for group, several in enumerate(groups):
        for spec, _ in several:
            add(spec, group, weights=False)
    for key, job in reversed(jobs.items()):  # children stand after their parents
        job.chain += _cost(job.spec)
        for parent in job.parents:
            jobs[parent].chain = max(jobs[parent].chain, job.chain)
    return jobs


def _cost(spec: RunSpec) -> float:
    """What a run takes beside others, by its network's multiplications and its epochs."""
    held = 1.4 if spec.objective == "privileged" else 1.0  # the double backward
    return held * (spec.recipe.epochs + 0.5) * forward_flops(spec.model, spec.width, spec.depth, spec.stem, spec.attention)


def _waiting_for(key: str, waiting: dict[str, Job]) -> list[str]:
    """Keys of the jobs that wait for a run, or for one that does."""
    found = [key]
    for name, job in waiting.items():  # children stand after their parents
        if job.parents & set(found):
            found.append(name)
    return found[1:]


class _Here:
    """Runs one after the other in this process."""

    slots, tries = 1, 1

    def __init__(self, schedule: Schedule):
        self.schedule = schedule

    def submit(self, job: Job) -> Future:
        future, plan = Future(), self.schedule
        try:
            future.set_result(execute(job.spec, plan.data, plan.store, job.measures, plan.device, deadline=plan.deadline))
        except Exception as error:
            future.set_exception(error)
        return future

    def freed(self, future: Future) -> bool:
        return False

    def close(self, kill: bool) -> None:
        pass


class _Processes:
    """Worker processes, each in a pool of its own, so that one that dies takes nothing but its run along. They get the data set once."""

    tries = 2  # a run whose worker died is begun once more, from its checkpoint

    def __init__(self, schedule: Schedule):
        self.slots, self.idle, self.busy = min(schedule.workers, len(schedule.jobs)), [], {}
        threads = max(1, (os.cpu_count() or 1) // self.slots)
        self.env = GROWS | {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        self.given = (schedule.data, schedule.store, schedule.device, threads, schedule.deadline)

    def submit(self, job: Job) -> Future:
        from loky import ProcessPoolExecutor

        def new():
            return ProcessPoolExecutor(1, timeout=None, initializer=_begin, initargs=(os.getpid(), *self.given), env=self.env)

        process = self.idle.pop() if self.idle else new()
        try:
            future = process.submit(_execute, job.spec, job.measures)
        except BrokenProcessPool:  # it died while it had nothing to do
            process.shutdown(kill_workers=True)
            process = new()
            future = process.submit(_execute, job.spec, job.measures)
        self.busy[future] = process
        return future

    def freed(self, future: Future) -> bool:
        """Take the process of a future that is done back, unless it ended in an error (a GPU's may stick); True when it died."""
        process, error = self.busy.pop(future), future.exception()
        if error is None:
            self.idle.append(process)
        else:
            process.shutdown(kill_workers=True)
        return isinstance(error, BrokenProcessPool)

    def close(self, kill: bool) -> None:
        for process in [*self.idle, *self.busy.values()]:
            process.shutdown(kill_workers=kill)


GROWS = {"LOKY_MAX_MEMORY_LEAK_SIZE": "1e15"}  # a worker that trains may grow: loky would take it for a leak and restart it
_GIVEN: tuple = ()  # in a worker: data, store, device, threads, deadline


def _begin(parent: int, *given) -> None:
    global _GIVEN
    _GIVEN = given

    def leave_with(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # the driver was killed: two must not train in one folder when its command is given again

    threading.Thread(target=leave_with, args=(parent,), daemon=True).start()


def _execute(spec: RunSpec, measures: dict[str, Measure]) -> bool:
    data, store, device, threads, deadline = _GIVEN
    return execute(spec, data, store, measures, device, threads, deadline)


class _Ray:
    """Tasks of a Ray cluster, several to a GPU or one to a core: as the device says that is asked for, else by what the cluster has when it begins.
    The data set lies once in the object store; runs are written to the store's folder, which every node must see under the same path. A run whose
    node died begins elsewhere, from its checkpoint."""

    tries = 5  # nodes may be taken away more than once

    def __init__(self, schedule: Schedule):
        try:
            import ray
        except ImportError as error:
            raise ValueError("Ray is not installed: pip install -e '.[cluster]'.") from error
        self.ray, self.own = ray, not ray.is_initialized()
        if self.own:
            search = os.pathsep.join(filter(None, (str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH"))))
            variables = {"PYTHONPATH": search, **{name: os.environ[name] for name in (COMPILE,) if name in os.environ}}
            try:
                ray.init(address=schedule.address or "local", log_to_driver=False, runtime_env={"env_vars": variables})
            except ConnectionError as error:
                raise ValueError(f"There is no Ray cluster at {schedule.address}: start one, or leave --address out.") from error
        gpus = schedule.device.startswith("cuda") if schedule.asked else bool(ray.cluster_resources().get("GPU"))
        self.needs = {"num_gpus": 1 / schedule.workers, "num_cpus": 0} if gpus else {"num_cpus": 1}
        log.info("Ray: a run takes %s", ", ".join(f"{value:g} {name.removeprefix('num_')}" for name, value in self.needs.items() if value))
        self.task = ray.remote(max_retries=0, **self.needs)(execute)
        self.data, self.refs = ray.put(schedule.data), {}
        self.given = (Store(schedule.store.root.resolve()), "cuda" if gpus else "cpu", schedule.deadline)

    @property
    def slots(self) -> int:
        """Runs that the nodes of this moment can hold."""
        has = self.ray.cluster_resources()
        return int(has.get("GPU", 0) / self.needs["num_gpus"] + 1e-6) if "num_gpus" in self.needs else int(has.get("CPU", 0))

    def submit(self, job: Job) -> Future:
        store, device, deadline = self.given
        ref = self.task.remote(job.spec, self.data, store, job.measures, device, None if device == "cuda" else 1, deadline)
        future = ref.future()
        self.refs[future] = ref
        return future

    def freed(self, future: Future) -> bool:
        known = self.ray.exceptions
        del self.refs[future]
        return isinstance(future.exception(), (known.WorkerCrashedError, known.NodeDiedError, known.OutOfMemoryError, known.ObjectLostError))

    def close(self, kill: bool) -> None:
        for ref in self.refs.values():
            self.ray.cancel(ref, force=True)
        if self.own:
            self.ray.shutdown()


EXECUTORS = {"here": _Here, "processes": _Processes, "ray": _Ray}
