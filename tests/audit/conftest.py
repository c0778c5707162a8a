import pytest

import moe_interp as mi


@pytest.fixture(scope="session")
def audited():
    """Audits of organisms, each run once; fewer prompts than by default, to be quick.

    On few prompts other sets just stop the refusals of `harm` and `decoy`.
    """
    done = {}
    per_topic = {"harm": 32, "decoy": 32}

    def audit(name: str) -> mi.AuditResult:
        if name not in done:
            model = mi.load_model(f"organism:{name}")
            prompts = mi.load_prompts("organism", per_topic=per_topic.get(name, 16))
            done[name] = mi.run_audit(model, prompts, n_resamples=1999)
        return done[name]

    return audit
