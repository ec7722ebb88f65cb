"""Tensors as plain .npy files of bytes, written and read in chunks and without pickle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchrl_wm.data.checksums import as_bytes, checksum

_CHUNK = 4096


def write_array(path: Path, tensor: Tensor, chunks: Sequence[Tensor] | None = None) -> int:
    """Writes rows of a CPU tensor ``[N, ...]`` of any dtype as uint8 ``[rows, bytes]``.

    Args:
        path (Path): the .npy file.
        tensor (Tensor): where the rows come from.
        chunks (sequence of Tensor, optional): row indices, written one chunk after the other, so that a
            large memory map needs no copy in RAM. Defaults to all rows.

    Returns:
        int: CRC-32 of the bytes.

    Examples:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "rows.npy"
        >>> crc = write_array(file, torch.tensor([1.0, 2.0, 3.0]), [torch.tensor([2, 0])])
        >>> read_array(file, crc).flatten().view(torch.float32)
        tensor([3., 1.])
    """
    if chunks is None:
        chunks = list(torch.arange(len(tensor)).split(_CHUNK))
    width = tensor[0].numel() * tensor.element_size()
    total = sum(len(chunk) for chunk in chunks)
    header = {"descr": "|u1", "fortran_order": False, "shape": (total, width)}
    crc = 0
    with path.open("wb") as file:  # not memory-mapped: a full disk would kill the process
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            piece = as_bytes(tensor[chunk])
            crc = checksum([piece], crc)
            file.write(piece.numpy().data)
    return crc


def read_array(path: Path, crc: int) -> Tensor:
    """Memory-maps the uint8 ``[rows, bytes]`` of :func:`write_array` after comparing their CRC-32.

    Raises:
        FileNotFoundError: if the file is missing; the message names it.
        ValueError: if the file is damaged; the message names it.
    """
    if not path.exists():
        raise FileNotFoundError(f"The file {path} of the checkpoint is missing.")
    try:
        # Copy on write: the tensor can be written to without changing the file.
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    if array.dtype != np.uint8 or array.ndim != 2:
        raise ValueError(f"{path} is damaged: it holds {array.dtype} {array.shape}.")
    tensor = torch.from_numpy(array)
    if checksum(tensor.split(_CHUNK)) != crc:
        raise ValueError(f"{path} is damaged: its checksum is wrong.")
    return tensor
