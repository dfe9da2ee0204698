"""The errors of this package. Every message says what was found, where, and what to do next.

FastVLMError            catch this to catch everything the package raises on purpose
├── CheckpointError     weights on disk: missing, torn, unknown, of the wrong shape, not writable
├── ConfigError         a wrong value in config.json or of an option
├── ImageError          a picture or a video that cannot be read
├── DataError           a data set or a file of results that cannot be read, written or resumed
├── PromptError         a prompt that cannot be answered: empty, too long, pictures that do not match
└── HubError            a model name that could not be turned into a local directory
"""


class FastVLMError(Exception):
    """Base of every error that this package raises on purpose."""


class CheckpointError(FastVLMError):
    """Weights on disk that cannot be read or written."""


class ConfigError(FastVLMError):
    """A wrong value in a configuration or of an option."""


class ImageError(FastVLMError):
    """A picture or a video that cannot be read."""


class DataError(FastVLMError):
    """A data set or a file of results that cannot be read, written or resumed."""


class PromptError(FastVLMError):
    """A prompt that cannot be answered."""


class HubError(FastVLMError):
    """A model name that could not be turned into a local directory."""
