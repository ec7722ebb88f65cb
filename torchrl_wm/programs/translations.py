"""Operations of torch as instructions: what of them a program can express."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_wm.programs import products
from torchrl_wm.programs.instructions import Code
from torchrl_wm.programs.products import PANEL
from torchrl_wm.programs.recorder import Columns, Recorder, Untranslatable

aten = torch.ops.aten


def _last(value: Tensor, dim) -> None:
    dims = [dim] if isinstance(dim, int) else list(dim)
    if value.ndim != 2 or [d % 2 for d in dims] != [1]:
        raise Untranslatable(f"dimension {dim} of a tensor of shape {tuple(value.shape)}")


def _among_neighbours(value: Tensor, dim: int | None) -> None:
    if dim is None or value.ndim < 2 or dim % value.ndim != value.ndim - 1:
        raise Untranslatable(f"dimension {dim} of a tensor of shape {tuple(value.shape)}")


def _index_select(recorder: Recorder, result, source, dim, index):
    if dim % source.ndim or source.ndim != 2:
        raise Untranslatable("index_select of anything but rows")
    found = recorder.place(result, source.shape[1])
    for which, latent in enumerate(recorder.latents):
        if source is latent and index is recorder.index:
            recorder.emit(Code.GATHER, *found, more=which)
            return
    if index is not recorder.action or id(source) in recorder._known:
        raise Untranslatable("index_select by anything but the action")
    recorder.refuse_sums(source)
    table = recorder.reserve(source.numel())
    recorder.load(products.TABLE, source, table, *source.shape)
    recorder.emit(Code.LOOKUP, *found, more=table)


def _copy_(recorder: Recorder, result, target, source):
    value = recorder.known(source)
    for which, place in enumerate(recorder.places):
        if target is place:
            recorder.emit(Code.STORE, 0, value.width, value.first, more=which)
            return
    raise Untranslatable("copy_ to anything but the next latents")


def _addmm(recorder: Recorder, result, bias, value, weight):
    _product(recorder, result, value, weight, bias)


def _product(recorder: Recorder, result, value, weight, bias=None):
    if id(value) in recorder.across and id(weight) in recorder._known:
        recorder.add_up(result, [(result, recorder.across[id(value)], recorder.known(weight))])
        return
    x, (_, width) = recorder.known(value), weight.shape
    if id(weight) in recorder._known or (bias is not None and bias.shape != (width,)):
        raise Untranslatable("a product of two values")
    recorder.product(weight, bias, x.first, recorder.place(result, width).first)


def _across(recorder: Recorder, result, value):
    if id(value) in recorder.turned or value.ndim != 2:
        raise Untranslatable("a transposition of anything but rows and columns")
    recorder.across[id(result)] = recorder.known(value)


def _block_product(recorder: Recorder, result, value, weight):
    _add_block_product(recorder, result, None, value, weight)


def _add_block_product(recorder: Recorder, result, bias, value, weight):
    """Values ``[blocks, R, n]`` times a weight ``[blocks, n, m]``: one product for each block."""
    if id(value) in recorder.across and id(weight) in recorder.turned:
        both = recorder.across[id(value)], recorder.known(weight)
        recorder.add_up(
            result, list(zip(result, *(_blocks(x, len(result)) for x in both), strict=True))
        )
        return
    if id(value) not in recorder.turned or id(weight) in recorder._known:
        raise Untranslatable("a product of matrices that differ from row to row")
    x, (blocks, depth, width) = recorder.known(value), weight.shape
    if id(bias) in recorder._known:
        raise Untranslatable("a bias that differs from row to row")
    if bias is not None and bias.shape != (blocks, 1, width):
        raise Untranslatable(f"blocks with a bias of shape {tuple(bias.shape)}")
    # A product writes whole panels: those of a narrow block reach into the next one, which comes after it.
    found = recorder.fresh(blocks * width + PANEL)
    recorder.alias(result, Columns(found.first, blocks * width))
    for block in range(blocks):
        part = None if bias is None else bias[block, 0]
        source, target = x.first + block * depth, found.first + block * width
        recorder.product(weight[block], part, source, target)


def _blocks(value: Columns, count: int) -> list[Columns]:
    size = value.width // count
    return [Columns(value.first + block * size, size) for block in range(count)]


def _cat(recorder: Recorder, result, parts, dim=0):
    _last(result, dim)
    found = recorder.place(result, result.shape[1])
    first = found.first
    for part in parts:
        x = recorder.columns(part)
        if id(part) in recorder._known and len(part) != len(result):
            raise Untranslatable("cat of values of different length")
        recorder.emit(Code.COPY, first, x.width, x.first)
        first += x.width


def _unary(code: Code, in_place: bool = False):
    def translate(recorder: Recorder, result, value):
        x = recorder.known(value)
        found = recorder.changed(value) if in_place else recorder.place(result, x.width)
        recorder.emit(code, *found, x.first)
        recorder.alias(result, found)

    return translate


def _curve(code: Code):
    """Functions with an exponential, which a few numbers more make faster: a loop over whole panels."""

    def translate(recorder: Recorder, result, value):
        x = recorder.known(value)
        rest, aligned = x.width % PANEL, x.first % PANEL == 0
        width = x.width + PANEL - rest if aligned and rest > 4 else x.width
        recorder.emit(code, recorder.place(result, x.width).first, width, x.first)

    return translate


def _elu(recorder: Recorder, result, value, alpha=1.0, scale=1.0, input_scale=1.0):
    if (alpha, scale, input_scale) != (1.0, 1.0, 1.0):
        raise Untranslatable("elu with other constants than 1")
    _curve(Code.ELU)(recorder, result, value)


def _softplus(recorder: Recorder, result, value, beta=1.0, threshold=20.0):
    if beta != 1.0:
        raise Untranslatable(f"softplus with beta={beta}")
    _curve(Code.SOFTPLUS)(recorder, result, value)


def _lerp(recorder: Recorder, result, start, end, weight):
    x, y, share = map(recorder.known, (start, end, weight))
    if len({x.width, y.width, share.width}) > 1:
        raise Untranslatable("lerp of different widths")
    found = recorder.place(result, x.width)
    recorder.emit(Code.LERP, *found, x.first, y.first, more=share.first)


def _clone(recorder: Recorder, result, value, **options):
    x = recorder.known(value)
    recorder.emit(Code.COPY, *recorder.place(result, x.width), x.first)


def _binary(code: Code, in_place: bool = False, swapped: bool = False):
    def translate(recorder: Recorder, result, one, other, alpha=1):
        if alpha != 1:
            raise Untranslatable("add or sub with alpha")
        if swapped:
            one, other = other, one
        x, y = (_operand(recorder, result, value) for value in (one, other))
        width = recorder.width_of(result)
        if x.width != width:
            x = _spread(recorder, x, width)
        if result.dtype == torch.bool and code < Code.LESS:
            raise Untranslatable("arithmetic of truth values")
        found = recorder.changed(one) if in_place else recorder.place(result, width)
        recorder.emit(code, *found, x.first, y.first, int(y.width == width))
        recorder.alias(result, found)

    return translate


def _operand(recorder: Recorder, result: Tensor, value) -> Columns:
    if not isinstance(value, Tensor):
        return Columns(recorder.number(float(value)), 1)
    found = recorder.columns(value)
    if id(value) not in recorder.same and value.ndim != result.ndim:
        raise Untranslatable("tensors with different numbers of dimensions")
    width = recorder.width_of(result)
    if found.width not in (1, width):
        raise Untranslatable(f"shapes {tuple(value.shape)} and {tuple(result.shape)} together")
    return found


def _spread(recorder: Recorder, value: Columns, width: int) -> Columns:
    found = recorder.fresh(width)
    recorder.emit(Code.SPREAD, *found, value.first)
    return found


def _power(recorder: Recorder, result, value, exponent):
    if exponent not in (1, 2, 3):
        raise Untranslatable(f"the power {exponent}")
    x = found = recorder.known(value)
    for _ in range(int(exponent) - 1):
        factor, found = found, recorder.fresh(x.width)
        recorder.emit(Code.MULTIPLY, *found, factor.first, x.first)
    recorder.alias(result, found)


def _where(recorder: Recorder, result, condition, one, other):
    width = recorder.width_of(result)
    found = [_operand(recorder, result, value) for value in (condition, one, other)]
    found = [x if x.width == width else _spread(recorder, x, width) for x in found]
    target = recorder.place(result, width)
    recorder.emit(Code.WHERE, *target, found[0].first, found[1].first, more=found[2].first)


def _masked_fill(recorder: Recorder, result, value, mask, number):
    _where(recorder, result, mask, number, value)


def _sum(recorder: Recorder, result, value, dim=None, keepdim=False):
    over_rows = [1] if id(value) in recorder.turned else [0]
    if value.ndim - over_rows[0] == 2 and dim is not None and list(dim) == over_rows:
        _sum_rows(recorder, result, recorder.known(value))
    else:
        _reduce(Code.SUM)(recorder, result, value, dim, keepdim)


def _sum_rows(recorder: Recorder, result, x: Columns):
    one = Columns(recorder.number(1.0), 1)
    recorder.add_up(result, [(result.view(1, x.width), one, x)])


def _reduce(code: Code):
    def translate(recorder: Recorder, result, value, dim=None, keepdim=False):
        if dim is None:
            raise Untranslatable("a reduction over the rows")
        _last(value, dim)
        x = recorder.known(value)
        recorder.emit(code, recorder.place(result, 1).first, x.width, x.first)

    return translate


def _softmax(recorder: Recorder, result, value, dim, half_to_float):
    _among_neighbours(value, dim)
    x = recorder.known(value)
    found = recorder.place(result, x.width)
    recorder.emit(Code.SOFTMAX, *found, x.first, more=value.shape[-1])


def _log_softmax(recorder: Recorder, result, value, dim, half_to_float):
    _last(value, dim)
    x = recorder.known(value)
    (high, _), (total, _), (log, _) = (recorder.fresh(1) for _ in range(3))
    below, powers = recorder.fresh(x.width), recorder.fresh(x.width)
    recorder.emit(Code.HIGHEST, high, x.width, x.first)
    recorder.emit(Code.SUBTRACT, *below, x.first, high, step=0)
    recorder.emit(Code.EXP, *powers, below.first)
    recorder.emit(Code.SUM, total, x.width, powers.first)
    recorder.emit(Code.LOG, log, 1, total)
    recorder.emit(Code.SUBTRACT, *recorder.place(result, x.width), below.first, log, step=0)


def _argmax(recorder: Recorder, result, value, dim=None, keepdim=False):
    _among_neighbours(value, dim)
    if not keepdim:
        raise Untranslatable("argmax without keepdim")
    recorder.largest[id(result)] = recorder.known(value), value.shape[-1]
    recorder._kept.append(result)


def _equal(recorder: Recorder, result, one, other):
    """The index of the largest number compared with all indices: one-hot."""
    x, count = recorder.largest.get(id(one), (None, 0))
    if x is None or not torch.equal(other, torch.arange(count)):
        raise Untranslatable("eq of anything but an argmax and all its indices")
    recorder.emit(Code.ONE_HOT, *recorder.place(result, x.width), x.first, more=count)


def _clamp(recorder: Recorder, result, value, low=None, high=None):
    x = recorder.known(value)
    for code, bound in ((Code.LARGER, low), (Code.SMALLER, high)):
        if bound is not None:
            y, before, x = _operand(recorder, result, bound), x, recorder.fresh(x.width)
            recorder.emit(code, *x, before.first, y.first, int(y.width == x.width))
    recorder.alias(result, x)


def _layer_norm(recorder: Recorder, results, value, shape, weight, bias, epsilon):
    x = recorder.known(value)
    if list(shape) != [x.width] or value.ndim != 2:
        raise Untranslatable("layer_norm over more than the last dimension")
    found = recorder.fresh(x.width)
    recorder.emit(Code.STANDARDISE, *found, x.first, more=recorder.number(epsilon))
    for code, value in ((Code.MULTIPLY, weight), (Code.ADD, bias)):
        if value is not None:
            before, found = found, recorder.fresh(x.width)
            recorder.emit(code, *found, before.first, recorder.columns(value).first)
    recorder.alias(results[0], found)
    _scale_of_norm(recorder, results[2], x, epsilon)


def _scale_of_norm(recorder: Recorder, result, x: Columns, epsilon):
    """The reciprocal standard deviation, for a derivative; what does not read it leaves it out."""
    away, square = _centred(recorder, x), recorder.fresh(x.width)
    (variance, _), (shifted, _) = recorder.fresh(1), recorder.fresh(1)
    recorder.emit(Code.MULTIPLY, *square, away.first, away.first)
    recorder.emit(Code.MEAN, variance, x.width, square.first)
    recorder.emit(Code.ADD, shifted, 1, variance, recorder.number(epsilon))
    recorder.emit(Code.RSQRT, *recorder.place(result, 1), shifted)


def _centred(recorder: Recorder, x: Columns) -> Columns:
    (mean, _), away = recorder.fresh(1), recorder.fresh(x.width)
    recorder.emit(Code.MEAN, mean, x.width, x.first)
    recorder.emit(Code.SUBTRACT, *away, x.first, mean, step=0)
    return away


def _layer_norm_backward(
    recorder: Recorder, results, gradient, value, shape, mean, scale, weight, bias, wanted
):
    """Of the input: ``scale (g - mean(g) - y mean(g y))``, with ``g`` before the weight."""
    x, g, scale = recorder.known(value), recorder.known(gradient), recorder.known(scale)
    width, fresh = x.width, recorder.fresh
    y, product, (share, _), shared, less = (
        fresh(width),
        fresh(width),
        fresh(1),
        fresh(width),
        fresh(width),
    )
    if weight is not None:
        before, g = g, fresh(width)
        recorder.emit(Code.MULTIPLY, *g, before.first, recorder.columns(weight).first)
    recorder.emit(Code.MULTIPLY, *y, _centred(recorder, x).first, scale.first, step=0)
    if wanted[1]:
        _sum_rows(recorder, results[1], _times(recorder, gradient, y))
    if wanted[2]:
        _sum_rows(recorder, results[2], recorder.known(gradient))
    if not wanted[0]:
        return
    recorder.emit(Code.MULTIPLY, *product, g.first, y.first)
    recorder.emit(Code.MEAN, share, width, product.first)
    recorder.emit(Code.MULTIPLY, *shared, y.first, share, step=0)
    recorder.emit(Code.SUBTRACT, *less, _centred(recorder, g).first, shared.first)
    found = recorder.place(results[0], width)
    recorder.emit(Code.MULTIPLY, *found, less.first, scale.first, step=0)


def _flip(recorder: Recorder, result, value, dims):
    _last(value, dims)
    x = recorder.known(value)
    recorder.emit(Code.FLIP, *recorder.place(result, x.width), x.first)


def _slice(recorder: Recorder, result, value, dim=0, start=None, end=None, step=1):
    _last(value, dim)
    if step != 1:
        raise Untranslatable("a slice with steps")
    x, (first, _, _) = recorder.known(value), slice(start, end).indices(value.shape[1])
    recorder.alias(result, Columns(x.first + first, result.shape[1]))


def _select(recorder: Recorder, result, value, dim, index):
    _last(value, dim)
    x = recorder.known(value)
    recorder.alias(result, Columns(x.first + index % x.width, 1))


def _split(recorder: Recorder, results, value, sizes, dim=0):
    _last(value, dim)
    first = recorder.known(value).first
    for result in results:
        recorder.alias(result, Columns(first, result.shape[1]))
        first += result.shape[1]


def _same(recorder: Recorder, result, value):
    recorder.alias(result, recorder.known(value))


def _reshape(recorder: Recorder, result, value, *_):
    x = recorder.known(value)
    if len(result) != recorder.rows or result.numel() != recorder.rows * x.width:
        raise Untranslatable(f"{tuple(value.shape)} as {tuple(result.shape)}")
    recorder.alias(result, x)


def _transpose(recorder: Recorder, result, value, one, other):
    if value.ndim == 3 and {one % 3, other % 3} == {1, 2} and id(value) in recorder.turned:
        recorder.across[id(result)] = recorder.known(value)
        return
    if value.ndim != 3 or {one % 3, other % 3} != {0, 1}:
        raise Untranslatable("a transposition of anything but rows and blocks")
    recorder.alias(result, recorder.known(value))
    if id(value) not in recorder.turned:
        recorder.turned.add(id(result))


def _convert(recorder: Recorder, result, value, **options):
    if result.dtype != torch.float32:
        raise Untranslatable(f"numbers of type {result.dtype}")
    recorder.alias(result, recorder.known(value))


def _expand(recorder: Recorder, result, value, size, **options):
    x = recorder.known(value)
    if x.width != 1 or value.ndim != 2 or result.ndim != 2 or len(value) != len(result):
        raise Untranslatable(f"{tuple(value.shape)} expanded to {tuple(result.shape)}")
    recorder.alias(result, _spread(recorder, x, result.shape[1]))


def _empty_like(recorder: Recorder, result, value, **options):
    recorder.place(result, recorder.width_of(result))


def _fill_(recorder: Recorder, result, value, number):
    found = recorder.changed(value)
    recorder.emit(Code.SPREAD, *found, recorder.number(float(number)))
    recorder.alias(result, found)


def _backward(code: Code):
    """The gradient of a function of one number, from that of its result and what was kept."""

    def translate(recorder: Recorder, result, gradient, kept):
        x, y = recorder.known(gradient), recorder.known(kept)
        recorder.emit(code, *recorder.place(result, x.width), x.first, y.first)

    return translate


def _times(recorder: Recorder, gradient, slope: Columns) -> Columns:
    x = recorder.known(gradient)
    found = recorder.fresh(x.width)
    recorder.emit(Code.MULTIPLY, *found, x.first, slope.first)
    return found


def _softplus_backward(recorder: Recorder, result, gradient, value, beta, threshold):
    if beta != 1.0:
        raise Untranslatable(f"softplus with beta={beta}")
    x = recorder.known(value)
    slope = recorder.fresh(x.width)
    recorder.emit(Code.SIGMOID, *slope, x.first)
    recorder.alias(result, _times(recorder, gradient, slope))


def _elu_backward(recorder: Recorder, result, gradient, alpha, scale, input_scale, is_result, kept):
    if (alpha, scale, input_scale) != (1, 1, 1):
        raise Untranslatable("elu with other constants than 1")
    y = x = recorder.known(kept)
    if not is_result:
        y = recorder.fresh(x.width)
        recorder.emit(Code.ELU, *y, x.first)
    below, slope = recorder.fresh(x.width), recorder.fresh(x.width)
    recorder.emit(Code.SMALLER, *below, y.first, recorder.number(0.0), step=0)
    recorder.emit(Code.ADD, *slope, below.first, recorder.number(1.0), step=0)
    recorder.alias(result, _times(recorder, gradient, slope))


def _relu_backward(recorder: Recorder, result, gradient, kept, threshold):
    if threshold != 0:
        raise Untranslatable(f"the threshold {threshold}")
    x, y, zero = recorder.known(gradient), recorder.known(kept), recorder.number(0.0)
    above, cut, nothing = (recorder.fresh(y.width) for _ in range(3))
    # A product with 0 would make NaN of an infinite gradient; a kept NaN lets the gradient pass.
    recorder.emit(Code.LARGER, *above, y.first, zero, step=0)
    recorder.emit(Code.EQUAL, *cut, above.first, zero, step=0)
    recorder.emit(Code.SPREAD, *nothing, zero)
    found = recorder.place(result, x.width)
    recorder.emit(Code.WHERE, *found, cut.first, nothing.first, more=x.first)


def _tanh_backward(recorder: Recorder, result, gradient, kept):
    x, y = recorder.known(gradient), recorder.known(kept)
    square, less = recorder.fresh(y.width), recorder.fresh(y.width)
    recorder.emit(Code.MULTIPLY, *square, y.first, y.first)
    recorder.emit(Code.MULTIPLY, *less, square.first, x.first)
    recorder.emit(Code.SUBTRACT, *recorder.place(result, x.width), x.first, less.first)


def _softmax_backward(recorder: Recorder, result, gradient, kept, dim, dtype):
    _among_neighbours(kept, dim)
    x, y = recorder.known(gradient), recorder.known(kept)
    found = recorder.place(result, x.width)
    recorder.emit(Code.SOFTMAX_BACKWARD, *found, x.first, y.first, more=kept.shape[-1])


def _log_softmax_backward(recorder: Recorder, result, gradient, kept, dim, dtype):
    _last(kept, dim)
    x, y = recorder.known(gradient), recorder.known(kept)
    (total, _), probs, shared = recorder.fresh(1), recorder.fresh(y.width), recorder.fresh(y.width)
    recorder.emit(Code.SUM, total, x.width, x.first)
    recorder.emit(Code.EXP, *probs, y.first)
    recorder.emit(Code.MULTIPLY, *shared, probs.first, total, step=0)
    recorder.emit(Code.SUBTRACT, *recorder.place(result, x.width), x.first, shared.first)


def _filled(number: float):
    def translate(recorder: Recorder, result, value, *_, **options):
        width = recorder.width_of(result)
        recorder.alias(result, recorder.columns(torch.full((width,), number)))

    return translate


def _full_like(recorder: Recorder, result, value, number, **options):
    _filled(float(number))(recorder, result, value)


TRANSLATIONS: dict = {
    aten.index_select.default: _index_select,
    aten.copy_.default: _copy_,
    aten.addmm.default: _addmm,
    aten.mm.default: _product,
    aten.t.default: _across,
    aten.bmm.default: _block_product,
    aten.baddbmm.default: _add_block_product,
    aten.cat.default: _cat,
    aten.relu.default: _unary(Code.RELU),
    aten.elu.default: _elu,
    aten.silu.default: _curve(Code.SILU),
    aten.softplus.default: _softplus,
    aten.clone.default: _clone,
    aten.lerp.Tensor: _lerp,
    aten.tanh.default: _curve(Code.TANH),
    aten.tanh_.default: _unary(Code.TANH, in_place=True),
    aten.sigmoid.default: _curve(Code.SIGMOID),
    aten.sigmoid_.default: _unary(Code.SIGMOID, in_place=True),
    aten.exp.default: _unary(Code.EXP),
    aten.log.default: _unary(Code.LOG),
    aten.abs.default: _unary(Code.ABS),
    aten.neg.default: _unary(Code.NEGATE),
    aten.sqrt.default: _unary(Code.SQRT),
    aten.rsqrt.default: _unary(Code.RSQRT),
    aten.sign.default: _unary(Code.SIGN),
    aten.add.Tensor: _binary(Code.ADD),
    aten.add_.Tensor: _binary(Code.ADD, in_place=True),
    aten.add_.Scalar: _binary(Code.ADD, in_place=True),
    aten.sub.Tensor: _binary(Code.SUBTRACT),
    aten.rsub.Scalar: _binary(Code.SUBTRACT, swapped=True),
    aten.mul.Tensor: _binary(Code.MULTIPLY),
    aten.mul_.Tensor: _binary(Code.MULTIPLY, in_place=True),
    aten.mul.Scalar: _binary(Code.MULTIPLY),
    aten.div.Tensor: _binary(Code.DIVIDE),
    aten.div.Scalar: _binary(Code.DIVIDE),
    aten.sub_.Tensor: _binary(Code.SUBTRACT, in_place=True),
    aten.silu_backward.default: _backward(Code.SILU_BACKWARD),
    aten.sigmoid_backward.default: _backward(Code.SIGMOID_BACKWARD),
    aten._softmax_backward_data.default: _softmax_backward,
    aten._log_softmax_backward_data.default: _log_softmax_backward,
    aten.softplus_backward.default: _softplus_backward,
    aten.elu_backward.default: _elu_backward,
    aten.threshold_backward.default: _relu_backward,
    aten.tanh_backward.default: _tanh_backward,
    aten.expand.default: _expand,
    aten.empty_like.default: _empty_like,
    aten.fill_.Scalar: _fill_,
    aten.maximum.default: _binary(Code.LARGER),
    aten.minimum.default: _binary(Code.SMALLER),
    aten.clamp_min.default: _binary(Code.LARGER),
    aten.clamp_max.default: _binary(Code.SMALLER),
    aten.clamp.Tensor: _clamp,
    aten.gt.Scalar: _binary(Code.LESS, swapped=True),
    aten.lt.Scalar: _binary(Code.LESS),
    aten.lt.Tensor: _binary(Code.LESS),
    aten.eq.Scalar: _binary(Code.EQUAL),
    aten.eq.Tensor: _equal,
    aten.pow.Tensor_Scalar: _power,
    aten.where.self: _where,
    aten.masked_fill.Scalar: _masked_fill,
    aten.amin.default: _reduce(Code.LOWEST),
    aten.amax.default: _reduce(Code.HIGHEST),
    aten.sum.dim_IntList: _sum,
    aten.mean.dim: _reduce(Code.MEAN),
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _log_softmax,
    aten.argmax.default: _argmax,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten.flip.default: _flip,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.split_with_sizes.default: _split,
    aten.split.Tensor: _split,
    aten.unsafe_split.Tensor: _split,
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.unsqueeze.default: _reshape,
    aten.squeeze.dim: _reshape,
    aten.detach.default: _same,
    aten.alias.default: _same,
    aten.transpose.int: _transpose,
    aten._to_copy.default: _convert,
    aten.zeros_like.default: _filled(0.0),
    aten.ones_like.default: _filled(1.0),
    aten.full_like.default: _full_like,
}

OF_BLOCKS = {
    aten.transpose.int,
    aten.sum.dim_IntList,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.lerp.Tensor,
    aten.sub_.Tensor,
    aten.sigmoid_backward.default,
    aten.detach.default,
    aten.empty_like.default,
    aten.fill_.Scalar,
}
"""What takes values whose blocks come before the rows."""
