"""Reading of other tools' evaluation logs: ``formats`` lists the kinds, one file each reads one of them (``files`` opens what
strangers wrote, within bounds), ``tables`` makes an outcome table of the generations they give."""
