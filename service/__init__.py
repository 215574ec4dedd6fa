"""Online: HTTP -> features -> user tower -> candidate tower -> calibrate, fuse -> answer."""
