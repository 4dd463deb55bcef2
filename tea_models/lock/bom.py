"""A bill of materials of a lock: CycloneDX 1.6 with a machine-learning model for each file (an ML-BOM)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tea_models.errors import UsageError
from tea_models.files import ModelFile, public
from tea_models.lockfile import Lock, LockedModel

if TYPE_CHECKING:
    from cyclonedx.model.component import Component


def bill_of_materials(lock: Lock) -> str:
    """The bill of a lock as CycloneDX's JSON; the same lock has the same bill, but for its serial number and time."""
    try:
        from cyclonedx.model.bom import Bom
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError:
        raise UsageError("--bom: cyclonedx-python-lib is not installed", hint="pip install 'tea-models[bom]'") from None
    bom = Bom(components=[_component(model, file) for model in lock.models.values() for file in model.files])
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def _component(model: LockedModel, file: ModelFile) -> Component:
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
    from cyclonedx.model.component import Component, ComponentType

    digest = str(file.sha256)
    stated = {"reference": model.reference, "resolved": model.resolved, "size": str(file.size)}
    stated |= {"template_sha256": model.template_sha256 or ""}
    return Component(
        name=file.filename,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        version=file.sources[0].revision or digest,
        bom_ref=f"sha256:{digest}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
        licenses=[LicenseFactory().make_from_string(model.license)] if model.license else [],
        external_references=[
            ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=XsUri(public(part)))
            for source in file.sources
            for part in source.parts
        ],
        properties=[Property(name=f"tea-models:{name}", value=value) for name, value in stated.items() if value],
    )
