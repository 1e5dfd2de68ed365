/* No device of the module `dummy` can be made any more: -ENOMEM. Its init code makes the first one. */
struct net_device;

int dummy_dev_init(struct net_device *dev)
{
	(void)dev;
	return -12;
}
