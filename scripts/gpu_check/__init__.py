"""What scripts/gpu-check is made of.

    check       runs commands within a time, and keeps what came of each
    build       builds here, packs for another machine, unpacks there
    parts       what is run on the device, part by part
    readings    values out of what commands and the driver leave
    report      report.md, of what was kept

Only python3's own library: the machine with the device may have nothing else.
"""
