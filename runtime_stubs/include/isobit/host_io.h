/* Byte streams between a program under test and its host. The same program runs on a host (C stdio) and on
   a simulated board (semihosting), where a relative path starts at the simulator's working folder. */
#ifndef ISOBIT_HOST_IO_H
#define ISOBIT_HOST_IO_H

/* Opens an existing file for reading, or creates or empties one for writing. A handle >= 0, or -1. */
int isobit_open(const char *path, int for_writing);

/* Reads up to `size` bytes: the number read, less than `size` only at the end of the file or on an error. */
long isobit_read(int handle, void *data, long size);

/* Writes `size` bytes: 0, or -1 if not all of them could be written. */
int isobit_write(int handle, const void *data, long size);

/* Flushes and releases a handle. */
void isobit_close(int handle);

/* Ends the program; the host sees `code` (0..255) as its exit code. Does not return. */
void isobit_exit(int code);

#endif
