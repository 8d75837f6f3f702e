"""The one place where exceptions end that nobody foresaw: of pydicom, NumPy, OpenCV, codecs. The file gets the blame.

A file in a million must not stop the others. Its path and the exception's class are named; the exception's own words
are not, since they may quote the file. By its class this error is to be told from all others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from ..errors import HDXrayError, ImageReadError, UnforeseenReadError


def unforeseen_named(read: Callable) -> Callable:
    """Make ``read(path, ...)`` raise nothing but errors of this package for a file.

    Raises:
        ImageReadError: out of memory.
        UnforeseenReadError: in place of whatever else was raised.
    """

    @functools.wraps(read)
    def named(path_or_array, *args, **options):
        try:
            return read(path_or_array, *args, **options)
        except (HDXrayError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except MemoryError:  # a file's fault as long as the others fit
            raise ImageReadError(path_or_array, "needs more memory than this process may take") from None
        except BaseException as error:  # a panic of a Rust plugin is no Exception
            if isinstance(path_or_array, np.ndarray) or (type(error) is TypeError and _of_the_call(error)):
                raise  # a caller's array has no secrets, and a wrong call is no fault of the file
            name, library = type(error).__name__, _library(error)
        raise UnforeseenReadError(
            path_or_array, f"the data are damaged, or of a kind that was not foreseen ({name} in {library})"
        )

    return named


def _of_the_call(error: BaseException) -> bool:
    """Raised by the call itself, an unknown keyword for example: there is no frame below this module's."""
    return error.__traceback__ is not None and error.__traceback__.tb_next is None


def _library(error: BaseException) -> str:
    """The package whose code raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "a library" if trace is None else trace.tb_frame.f_globals.get("__name__", "a library").partition(".")[0]
