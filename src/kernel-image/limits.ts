/** No kernel or module unpacks to more; what is made to, in a file of a few megabytes, is refused before it is all there. */
export const MAX_UNPACKED_BYTES = 2 ** 30;
