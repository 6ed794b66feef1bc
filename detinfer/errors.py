"""Every error detinfer raises on purpose, as one tree.

Each message is one line: which argument or file, what was got, what was expected. The command
prints it and exits with status 2; a request over HTTP gets it with a status of its own::

    DetinferError                 whatever has no class of its own: a check that got no answer
      ConfigError                 settings, flags, environment, memory: before anything is loaded
      ModelLoadError              checkpoint/, runner/loading.py, the engine's process at load
      UnsupportedModelError       checkpoint/, models/, runner/: at load
      RequestError           400  SamplingParams, engine/validation.py, the routes of the server
      QueueFullError         429  engine/streams.py, server/limits.py, service.py: too much is open
      GenerationTimeoutError 504  engine/streams.py
      EngineDeadError        503  engine/channel.py, async_engine.py: the process ends, or has
        UnavailableError     503  server/service.py, generation.py: loading, draining or dead
      GenerationError        500  server/generation.py: an answer ended with "error"

An engine's process hands over what it raised at load, and the server exits with status 2; one that
dies later ends the server with status 1 (``--exit-on-engine-death``). Anything else that is raised
is a defect: over HTTP a 500 that says nothing of it, in the log all of it.
"""


class DetinferError(Exception):
    """Base of all errors raised on purpose; the CLI prints its message and exits with 2."""


class ConfigError(DetinferError, ValueError):
    """A setting, flag or part of the environment that cannot work."""


class ModelLoadError(DetinferError):
    """A model that cannot be found, fetched, read or verified."""


class UnsupportedModelError(DetinferError):
    """A model whose bits cannot be guaranteed; names the module and the op."""


class RequestError(DetinferError, ValueError):
    """A request that cannot be served as asked.

    Attributes:
        param: the name of the offending request field, or None.
        code: a machine-readable code such as ``context_length_exceeded``, or None.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.param, self.code)


class QueueFullError(DetinferError):
    """The waiting queue is full; try again after ``retry_after`` seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class GenerationTimeoutError(DetinferError):
    """A request took longer, from its first step on, than the server allows."""


class EngineDeadError(DetinferError):
    """The engine process ended or is shutting down; no request can be served."""
