"""One plain call of each op, and one of each form that takes another way through schema or arithmetic; float64."""

from support import Draw

OPS = ("distill", "project", "fuse", "inject", "orthogonality")


def distill_arguments(*, shared=True, affine=False, mask=False, **options):
    draw = Draw(0)
    shapes = [(2, 33, 24), (3, 17, 10)]
    given = {
        "taps": [draw(*shape) for shape in shapes],
        "queries": [draw(3, d) if shared else draw(b, 3, d) for b, _, d in shapes],
    }
    if affine:
        given |= {"weight": [draw(d) for _, _, d in shapes], "bias": [draw(d) for _, _, d in shapes]}
    if mask:
        given["key_mask"] = [draw.mask(b, n) for b, n, _ in shapes]
    return {**given, **options}


def project_arguments(*, batch=(), outs=(6, 6), rows=(4, 4), **options):
    draw = Draw(1)
    sizes = list(zip(rows, (24, 10), outs, strict=True))
    return {
        "tokens": [draw(*batch, m, d) for m, d, _ in sizes],
        "weights": [draw(d, e) for _, d, e in sizes],
        "biases": [draw(e) for _, _, e in sizes],
        "residuals": [draw(m, e) for m, _, e in sizes],
        **options,
    }


def fuse_arguments(gate=None, **options):
    draw = Draw(2)
    given = {
        "tokens": [draw(2, 4, d) for d in (24, 10, 7)],
        "weights": [draw(d, 6) for d in (24, 10, 7)],
        "biases": [draw(6) for _ in range(3)],
    }
    if gate:
        given["gate"] = draw(gate)
    return {**given, **options}


def inject_arguments(**options):
    draw = Draw(3)
    shapes = [(33, 24), (17, 10)]
    return {
        "features": [draw(2, n, d) for n, d in shapes],
        "keys": [draw(2, 3, d) for _, d in shapes],
        "values": [draw(2, 3, d) for _, d in shapes],
        **options,
    }


def orthogonality_arguments(stacked=False):
    draw = Draw(4)
    return {"tokens": draw(3, 2, 4, 10) if stacked else [draw(2, 4, d) for d in (24, 10)]}


# One plain call of each op, and one of each form that takes another way through schema or arithmetic.
PLAIN = {
    "distill": distill_arguments(affine=True),
    "project": project_arguments(norm="layer", activation="gelu"),
    "fuse": fuse_arguments(gate=3, norm="layer"),
    "inject": inject_arguments(),
    "orthogonality": orthogonality_arguments(),
}
FORMS = {
    **{op: (op, given) for op, given in PLAIN.items()},
    "distill-masked": ("distill", distill_arguments(shared=False, mask=True, norm="rms", scale=0.3)),
    "distill-none": ("distill", distill_arguments(norm="none")),
    "project-stack": ("project", project_arguments(batch=(2,), stack=True)),
    "project-ragged": ("project", project_arguments(outs=(6, 9), rows=(4, 1), activation="relu", norm="rms")),
    "fuse-mean": ("fuse", fuse_arguments()),
    "fuse-token": ("fuse", fuse_arguments(gate=6)),
    "inject-scale": ("inject", inject_arguments(scale=0.3, norm="none")),
    "orthogonality-tensor": ("orthogonality", orthogonality_arguments(stacked=True)),
}
