"""What a run takes, before its first step: parameters, memory, devices. Nothing here needs torch."""
