/* A fault for tests/mpi.rs: one rank gets another sum of gradients than the others, once. Loaded before MPI's library. */
#include <mpi.h>

int MPI_Allgather(const void *send, int n_send, MPI_Datatype send_type, void *received, int n, MPI_Datatype type, MPI_Comm comm) {
    static int calls = 0;
    int status = PMPI_Allgather(send, n_send, send_type, received, n, type, comm);
    if (type == MPI_FLOAT && ++calls == 3) {
        ((float *)received)[0] += 0.25f;
    }
    return status;
}
