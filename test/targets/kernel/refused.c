/* One refusal for each macro; the names are the kernel's. */
#ifdef INIT
int start_kernel(void) { return 1; }
#endif
#ifdef AMBIGUOUS
int AMBIGUOUS(void) { return 1; }
#endif
#ifdef UNRESOLVED
extern int no_such_function_anywhere(void);
int get_avenrun(void) { return no_such_function_anywhere() + 1; }
#endif
#ifdef NOTHING
int no_function_of_that_name(void) { return 1; }
#endif
#ifdef SPECIAL
int get_avenrun(void)
{
	asm(".pushsection __bug_table,\"aw\"; .long 1; .popsection");
	return 1;
}
#endif
#ifdef NO_FENTRY
int memcpy_orig(void) { return 1; }
#endif
#ifdef EMPTY
int EMPTY(void) { return 1; }
#endif
