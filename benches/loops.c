/* A plugin of qemu's emulation of programs: counts the instructions that a program has run, and puts the number in front of
   everything that it writes to its standard output. benches/loops.py compiles it. Debian's qemu comes without the header of
   plugins, so that what is used of version 1 is declared here. */
#include <inttypes.h>
#include <stdio.h>

struct qemu_plugin_tb;
typedef void translated(uint64_t plugin, struct qemu_plugin_tb *block);
typedef void called(uint64_t plugin, unsigned cpu, int64_t number, uint64_t first, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                    uint64_t, uint64_t);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t plugin, translated *callback);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *block, int operation, void *number, uint64_t operand);
void qemu_plugin_register_vcpu_syscall_cb(uint64_t plugin, called *callback);

enum { ADD = 0 };
enum { WRITE_X86_64 = 1, WRITE_AARCH64 = 64, STANDARD_OUTPUT = 1 };

int qemu_plugin_version = 1;
static uint64_t count;

static void translate(uint64_t plugin, struct qemu_plugin_tb *block)
{
    (void)plugin;
    qemu_plugin_register_vcpu_tb_exec_inline(block, ADD, &count, qemu_plugin_tb_n_insns(block));
}

static void call(uint64_t plugin, unsigned cpu, int64_t number, uint64_t first, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
                 uint64_t f, uint64_t g, uint64_t h)
{
    (void)plugin, (void)cpu, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if ((number == WRITE_X86_64 || number == WRITE_AARCH64) && first == STANDARD_OUTPUT) {
        dprintf(STANDARD_OUTPUT, "%" PRIu64 " ", count);
    }
}

int qemu_plugin_install(uint64_t plugin, const void *info, int argc, char **argv)
{
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(plugin, translate);
    qemu_plugin_register_vcpu_syscall_cb(plugin, call);
    return 0;
}
