//! scratch
use guard_agent::bpf;
use guard_common::*;
fn main() -> anyhow::Result<()> {
    let pins = std::path::PathBuf::from("/sys/fs/bpf/guard-agent");
    let prepared = match bpf::load::prepare(&pins) {
        Ok(p) => p,
        Err(e) => {
            println!("{e:#?}");
            return Err(e.into());
        }
    };
    let mut maps = prepared.maps()?;
    maps.config.write(Config {
        magic_bloom: policy::magic_bit(policy::RAMFS_MAGIC),
        host_mnt_ns: 0,
        full_records: 8,
    })?;
    let programs = match prepared.attach() {
        Ok(p) => p,
        Err(e) => {
            println!("{e}\n{e:?}");
            return Err(e.into());
        }
    };
    println!("{programs:?}");
    bpf::canary::prove(&mut maps, programs.token())?;
    println!("canary ok; counters {:?}", maps.counters()?);
    Ok(())
}
