"""Every error this package raises on purpose: one base class, and the built-in class it stands for.

``except hdxray_fast.HDXrayError`` catches all of them; ``except ValueError`` or ``except OSError`` catches those that a
caller would expect under that name.

Messages name files, arguments, columns and rows; they never hold what stands in a table, a report or a header.
"""

from __future__ import annotations

from .terminal import visible


class HDXrayError(Exception):
    """Base class of all errors raised on purpose by hdxray_fast."""

    def __str__(self) -> str:
        return visible(super().__str__())  # names of files come from anywhere


class ArgumentError(HDXrayError, ValueError):
    """An argument has the right type but a value, shape or dtype that is not accepted."""


class ArgumentTypeError(HDXrayError, TypeError):
    """An argument has a type that is not accepted."""


class ConfigError(HDXrayError, ValueError):
    """A training configuration is inconsistent or cannot be read."""


class BackendError(HDXrayError, RuntimeError):
    """A backend was asked for by name and is not available on this machine or for these tensors."""


class CheckpointError(HDXrayError, OSError):
    """A checkpoint is missing, damaged, or does not belong to the model."""


class NotAFileError(HDXrayError, OSError):
    """A pipe, a device, a socket or a folder lies where a file is read, or a file that is larger than any such is.

    Attributes:
        path: as the caller gave it.
        strerror: what is wrong, in words, without the path, as other ``OSError`` have it.
    """

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.strerror = str(path), reason

    def __reduce__(self):  # worker processes send these errors back through pickle
        return type(self), (self.path, self.strerror)


class TrainingError(HDXrayError, RuntimeError):
    """Training cannot go on (for example: the loss is not finite, or no image of the data set can be read)."""


class MissingDependencyError(HDXrayError, ImportError):
    """An optional package is needed for what was asked; the message says how to install it."""


class ImageReadError(HDXrayError, OSError):
    """A file or array cannot be turned into a canvas.

    Attributes:
        path: the path as the caller gave it, or ``"<array>"``.
        reason: what is wrong, in words, without the path.
    """

    def __init__(self, path: object, reason: str) -> None:
        self.path = str(path)
        self.reason = reason
        super().__init__(f"{self.path}: {reason}")

    def __reduce__(self):  # worker processes send these errors back through pickle
        return type(self), (self.path, self.reason)


class UnforeseenReadError(ImageReadError):
    """A library stumbled over a file in a way that nothing here foresaw; the file is most probably damaged."""


class ImageTooLargeError(ImageReadError):
    """The file declares more pixels, bytes or frames than the caps allow; nothing was allocated for it."""


class UnsupportedImageError(ImageReadError):
    """The file is readable, but is not an image this package should guess about (CT, ultrasound, many frames...)."""


class OtherModalityError(UnsupportedImageError):
    """A DICOM file of another modality than projection radiography."""
