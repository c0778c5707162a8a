import beartype  # noqa: F401, I001  Before nnsight, which mounts `save` on `object` and breaks it.
import os

os.environ["HF_HUB_OFFLINE"] = "1"
