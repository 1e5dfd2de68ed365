/** No kernel or module unpacks to more; what is made to, in a file of a few megabytes, is refused before it is all there. */
export const MAX_UNPACKED_BYTES = 2 ** 30;
/** What zstd's own tools accept (ZSTD_WINDOWLOG_LIMIT_DEFAULT), twice: a frame in one segment has all its contents for a window. */
export const MAX_WINDOW_BYTES = 2 ** 28;
