"""What NDIF 0.1.2 needs to run models without a GPU; nothing else of it is changed.

NDIF takes the class of its model actors from its environment. These put the weights on the CPU,
where the shipped ones put them on GPUs and synchronise with CUDA after each request. The class
that runs blocks in a sandbox runs those of trusted requests beside the weights, so that one
deployment serves both kinds.
"""

from functools import partial

import ray
import torch
from ndif.services.ray.sandbox import host
from ndif.services.ray.sandbox.model import SandboxModelDeployment
from nnsight.modeling.huggingface import HuggingFaceModel

if not torch.cuda.is_available():
    torch.cuda.synchronize = lambda *_: None

# A runner builds its model without weights from the hub, so it must find the same one.
host.RUNNER_ENV += ("HF_ENDPOINT", "HF_HUB_DISABLE_XET")
# On a busy machine it may take longer to start than the half minute that is allowed for it.
host.spawn = partial(host.spawn, timeout=180.0)


class OnCPU:
    CACHEABLE = False  # There is no GPU that weights could be moved off.

    def load_from_disk(self):
        model = HuggingFaceModel.from_model_key(
            self.model_key, dispatch=True, dtype=self.dtype_name, device="cpu", **self.kwargs
        )
        model._module.requires_grad_(False)
        return model


@ray.remote(num_cpus=1, max_restarts=-1)
class CPUModelActor(OnCPU, SandboxModelDeployment):
    pass
