"""stm-fast export: writes a network as files that run without this package."""

from pathlib import Path

from stm_fast.choices import Dtype, ExportBackend, ExportFormat
from stm_fast.export.folder import export_network
from stm_fast.network.released import LICENSES
from stm_fast.printing import say
from stm_fast.progress import waiting
from stm_fast.tasks.choice import NetworkChoice
from stm_fast.tasks.network import load_model


def run_export(network: NetworkChoice, output: Path, form: ExportFormat, backend: ExportBackend, dtype: Dtype) -> None:
    """Writes the folder and prints a line. Raises InputError as `export_network` does."""
    model, source = load_model(network), str(network.weights)
    weights = {"source": source, "license": LICENSES.get(source, "unknown: that of the weights")}
    with waiting(f"exporting as {form}"):
        export_network(model, output, form, backend=backend, dtype=dtype, weights=weights)
    say(f"{output}: {model.architecture}")
