"""`mmt export`: a checkpoint as ONNX files."""

from modeling_mmt.commands.terminal import print_json
from modeling_mmt.data.errors import InputError
from modeling_mmt.evaluation.evaluate import check_checkpoint


def main(checkpoint: str, output_dir: str, revision: str | None = None, as_json: bool = False):
    """Write the files, and print how large they are.

    Args:
        checkpoint: folder, or name on the Hub.
        output_dir: folder to write to.
        revision: tag or commit of a checkpoint on the Hub.
        as_json: print JSON.
    """
    check_checkpoint(checkpoint)
    try:
        from modeling_mmt.plugins.onnx_export import export
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'modeling_mmt[plugins]'") from error
    files = {
        str(path): path.stat().st_size for path in sorted(export(checkpoint, output_dir, revision).glob("*.onnx"))
    }
    if as_json:
        print_json({"files": files})
        return
    for path, size in files.items():
        print(f"{path}  {size / 2**20:.1f} MiB")
