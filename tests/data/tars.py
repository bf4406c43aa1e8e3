"""Tar files as other programs write them."""

import io
import tarfile


def write_tar(path, members, form=tarfile.PAX_FORMAT):
    """Write pairs of name and bytes, or of name and a whole header of something without content, such as a link."""
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
