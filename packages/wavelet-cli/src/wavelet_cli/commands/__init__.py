"""The commands, one file each: a module here whose `command` is a `click.Command` is a command of `wavelet`.

They import no more than click when they are loaded; what they call is imported when they run, so that
`wavelet --help` answers at once.
"""
