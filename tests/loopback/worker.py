"""The far side of a remote trace: a process that cannot import moe_interp and runs what it is sent.

It reads length-prefixed pickles of (checkpoint, request, environment) from stdin, loads each
checkpoint once with plain nnsight, and answers on stdout: ("ok", saved values) or
("error", traceback).
"""

import os
import pickle
import struct
import sys
import traceback


class Blocked:
    """An import finder that has never heard of this project."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("moe_interp", "jaxtyping", "beartype", "einops"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def receive(stream):
    head = stream.read(8)
    if len(head) < 8:
        return None
    return pickle.loads(stream.read(struct.unpack("<Q", head)[0]))


def send(stream, message):
    body = pickle.dumps(message)
    stream.write(struct.pack("<Q", len(body)) + body)
    stream.flush()


def run(model, blob, env):
    """What an NDIF model actor does with a request: restore, execute, collect what was saved."""
    from nnsight.schema.request import RequestModel
    from nnsight.tracing.tracer import _saves, dec, inc

    model._remoteable_set_env(env)
    tracer = RequestModel.deserialize(blob, model._remoteable_persistent_objects(), compress=True)
    inc()
    try:
        tracer.execute(tracer.info.code)
        saved = _saves()
        names = tracer.info.frame.f_locals
        return {name: value for name, value in names.items() if id(value) in saved}
    finally:
        dec()
        model.interleaver.cancel()


def main():
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.meta_path.insert(0, Blocked())
    import torch
    from nnsight.modeling.transformers import TransformersModel

    torch.set_num_threads(1)
    models = {}
    while (request := receive(sys.stdin.buffer)) is not None:
        checkpoint, blob, env = request
        try:
            if checkpoint not in models:
                model = TransformersModel(checkpoint, task="text-generation", dispatch=True)
                model._module.requires_grad_(False)
                models[checkpoint] = model
            send(answers, ("ok", run(models[checkpoint], blob, env)))
        except BaseException as error:
            send(answers, ("error", "".join(traceback.format_exception(error))))


if __name__ == "__main__":
    main()
