/* QEMU TCG plugin: counts the instructions executed between two marker addresses (isobit/count.h).

   -plugin count.so,begin=0xADDR,end=0xADDR,out=PATH writes, at exit, "instructions N" and "regions K" to
   PATH, over all closed regions. Exact for one virtual CPU: each translated instruction increments one
   counter inline, and the markers, which are not counted themselves, read it.

   The declarations below are those of QEMU's plugin API version 1 that are used here; distributions ship QEMU
   without its qemu-plugin.h. */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_info;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };

typedef void (*translated_cb)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*executed_cb)(unsigned int cpu, void *user);
typedef void (*exit_cb)(qemu_plugin_id_t, void *user);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated_cb);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, executed_cb, enum qemu_plugin_cb_flags,
                                            void *user);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, enum qemu_plugin_op, void *counter,
                                                uint64_t step);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, exit_cb, void *user);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);

#define EXPORT __attribute__((visibility("default")))

EXPORT extern int qemu_plugin_version;
EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info, int argc, char **argv);

EXPORT int qemu_plugin_version = 1;

static uint64_t begin_address, end_address;
static FILE *out;

static uint64_t executed; /* since the start of the machine, markers excluded */
static uint64_t executed_at_begin;
static int open_region;
static uint64_t instructions, regions;

static void at_begin(unsigned int cpu, void *user) {
  (void)cpu;
  (void)user;
  if (open_region) return;
  open_region = 1;
  executed_at_begin = executed;
}

static void at_end(unsigned int cpu, void *user) {
  (void)cpu;
  (void)user;
  if (!open_region) return;
  open_region = 0;
  instructions += executed - executed_at_begin - 1; /* less the branch to the end marker */
  regions += 1;
}

static void at_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
  (void)id;
  const size_t count = qemu_plugin_tb_n_insns(block);
  for (size_t i = 0; i < count; ++i) {
    struct qemu_plugin_insn *const insn = qemu_plugin_tb_get_insn(block, i);
    const uint64_t address = qemu_plugin_insn_vaddr(insn);
    if (address == begin_address) {
      qemu_plugin_register_vcpu_insn_exec_cb(insn, at_begin, QEMU_PLUGIN_CB_NO_REGS, NULL);
    } else if (address == end_address) {
      qemu_plugin_register_vcpu_insn_exec_cb(insn, at_end, QEMU_PLUGIN_CB_NO_REGS, NULL);
    } else {
      qemu_plugin_register_vcpu_insn_exec_inline(insn, QEMU_PLUGIN_INLINE_ADD_U64, &executed, 1);
    }
  }
}

static void at_exit(qemu_plugin_id_t id, void *user) {
  (void)id;
  (void)user;
  fprintf(out, "instructions %" PRIu64 "\nregions %" PRIu64 "\n", instructions, regions);
  fclose(out);
}

/* The text after "name=" where `argument` starts so, else NULL. */
static const char *value_of(const char *argument, const char *name) {
  const size_t length = strlen(name);
  return strncmp(argument, name, length) == 0 && argument[length] == '=' ? argument + length + 1 : NULL;
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info, int argc, char **argv) {
  (void)info;
  int markers = 0;
  for (int i = 0; i < argc; ++i) {
    const char *value;
    if ((value = value_of(argv[i], "begin")) != NULL) {
      begin_address = strtoull(value, NULL, 0);
      ++markers;
    } else if ((value = value_of(argv[i], "end")) != NULL) {
      end_address = strtoull(value, NULL, 0);
      ++markers;
    } else if ((value = value_of(argv[i], "out")) != NULL) {
      out = fopen(value, "w");
    }
  }
  if (markers != 2 || out == NULL) {
    fputs("count_plugin: needs begin=ADDRESS,end=ADDRESS,out=WRITABLE_PATH\n", stderr);
    return 1;
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, at_translation);
  qemu_plugin_register_atexit_cb(id, at_exit, NULL);
  return 0;
}
