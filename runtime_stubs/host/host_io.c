/* isobit/host_io.h on a host, through C stdio. */
#include "isobit/host_io.h"

#include <stdio.h>
#include <stdlib.h>

#define MAX_OPEN 16

static FILE *streams[MAX_OPEN];

static FILE *stream_of(int handle) { return handle >= 0 && handle < MAX_OPEN ? streams[handle] : NULL; }

int isobit_open(const char *path, int for_writing) {
  for (int handle = 0; handle < MAX_OPEN; ++handle) {
    if (streams[handle] == NULL) {
      streams[handle] = fopen(path, for_writing ? "wb" : "rb");
      return streams[handle] != NULL ? handle : -1;
    }
  }
  return -1;
}

long isobit_read(int handle, void *data, long size) {
  FILE *const stream = stream_of(handle);
  if (stream == NULL || size <= 0) return 0;
  return (long)fread(data, 1, (size_t)size, stream);
}

int isobit_write(int handle, const void *data, long size) {
  FILE *const stream = stream_of(handle);
  if (stream == NULL || size < 0) return -1;
  return fwrite(data, 1, (size_t)size, stream) == (size_t)size ? 0 : -1;
}

void isobit_close(int handle) {
  FILE *const stream = stream_of(handle);
  if (stream == NULL) return;
  fclose(stream);
  streams[handle] = NULL;
}

void isobit_exit(int code) { exit(code); }
