/* isobit/host_io.h on a board under a debugger or simulator: Arm's "Semihosting for AArch32 and AArch64". */
#include <stdint.h>
#include <string.h>

#include "isobit/host_io.h"

enum operation {
  SYS_OPEN = 0x01,
  SYS_CLOSE = 0x02,
  SYS_WRITE = 0x05,
  SYS_READ = 0x06,
  SYS_EXIT_EXTENDED = 0x20
};

/* Modes of SYS_OPEN, numbered as fopen's in the specification. */
enum open_mode { MODE_RB = 1, MODE_WB = 5 };

#define APPLICATION_EXIT 0x20026u

/* `block` is the operation's parameter block, one register-sized word per parameter. */
static intptr_t host_call(enum operation operation, const uintptr_t *block) {
#if defined(__arm__)
  register intptr_t r0 __asm("r0") = (intptr_t)operation;
  register const uintptr_t *r1 __asm("r1") = block;
  __asm volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
#else
#error "semihosting.c: give this architecture's semihosting trap"
#endif
}

int isobit_open(const char *path, int for_writing) {
  const uintptr_t block[3] = {(uintptr_t)path, for_writing ? MODE_WB : MODE_RB, strlen(path)};
  return (int)host_call(SYS_OPEN, block);
}

long isobit_read(int handle, void *data, long size) {
  uint8_t *next = data;
  long left = size;
  while (left > 0) {
    const uintptr_t block[3] = {(uintptr_t)handle, (uintptr_t)next, (uintptr_t)left};
    const long missing = (long)host_call(SYS_READ, block); /* bytes not read; all of them at the end */
    if (missing < 0 || missing >= left) break;
    next += left - missing;
    left = missing;
  }
  return size - left;
}

int isobit_write(int handle, const void *data, long size) {
  const uint8_t *next = data;
  long left = size;
  while (left > 0) {
    const uintptr_t block[3] = {(uintptr_t)handle, (uintptr_t)next, (uintptr_t)left};
    const long missing = (long)host_call(SYS_WRITE, block); /* bytes not written */
    if (missing < 0 || missing >= left) return -1;
    next += left - missing;
    left = missing;
  }
  return 0;
}

void isobit_close(int handle) {
  const uintptr_t block[1] = {(uintptr_t)handle};
  host_call(SYS_CLOSE, block);
}

void isobit_exit(int code) {
  const uintptr_t block[2] = {APPLICATION_EXIT, (uintptr_t)code};
  for (;;) host_call(SYS_EXIT_EXTENDED, block);
}
